"""Tokenizers, which turn texts into int32 token ids, padded with 0."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol
from zlib import crc32

import numpy as np
import numpy.typing as npt

from everloop.envs.data.cache import fingerprint
from everloop.envs.data.optional import first_line, needed

Ids = npt.NDArray[np.int32]
Firsts = npt.NDArray[np.bool_]
WORD = re.compile(r"\w+|[^\w\s]")  # a word or number, or one other character that is not a space


class Tokenizer(Protocol):
    """What the loaders of texts ask of a tokenizer."""

    @property
    def name(self) -> str:
        """Identifies what the tokenizer does to a text; part of the texts' key in the cache."""

    @property
    def vocabulary(self) -> int:
        """Size of the vocabulary: ids are from 0 to vocabulary - 1."""

    def encode(self, texts: Sequence[str], length: int) -> Ids:
        """Return the ids of each text's first tokens, int32 (N, length), padded with 0."""

    def encode_words(self, sentences: Sequence[Sequence[str]], length: int) -> tuple[Ids, Firsts]:
        """Return the ids of each sentence's words, and where a word begins.

        Args:
            sentences: N lists of words.
            length: Tokens to keep of each sentence.

        Returns:
            Ids, int32 (N, length), padded with 0; and True where a word begins, bool (N, length).
        """


class HashTokenizer(Tokenizer):
    """A tokenizer that hashes each lower-cased word into a fixed vocabulary.

        id = 1 + crc32(word) mod (vocabulary - 1)      (Weinberger et al. 2009, "Feature hashing")

    It is not fitted to any text, so its vocabulary holds nothing of later tasks or test texts.

    Args:
        vocabulary: Size of the vocabulary, 2 or more.

    Raises:
        ValueError: If the vocabulary is below 2.
    """

    def __init__(self, vocabulary: int = 2**15) -> None:
        if vocabulary < 2:
            raise ValueError(f"vocabulary is {vocabulary}; it must be 2 or more")
        self.size = vocabulary

    @property
    def name(self) -> str:
        return f"crc32 {self.size}"

    @property
    def vocabulary(self) -> int:
        return self.size

    def encode(self, texts: Sequence[str], length: int) -> Ids:
        ids = ([self._id(word) for word in WORD.findall(text)[:length]] for text in texts)
        return _padded(ids, len(texts), length)

    def encode_words(self, sentences: Sequence[Sequence[str]], length: int) -> tuple[Ids, Firsts]:
        words = ([self._id(word) for word in sentence[:length]] for sentence in sentences)
        ids = _padded(words, len(sentences), length)
        return ids, ids > 0

    def _id(self, word: str) -> int:
        return 1 + crc32(word.lower().encode(errors="replace")) % (self.size - 1)


class PretrainedTokenizer(Tokenizer):
    """A Hugging Face tokenizer with its special tokens (extra `text`).

    An id is the tokenizer's own id + 1, so that 0 is free for padding.
    `everloop.agents.TransformerEncoder` subtracts the 1 again.

    Args:
        checkpoint: A local folder or a Hub id.

    Raises:
        ValueError: If it cannot be loaded, or if it is not a "fast" tokenizer; only a fast one
            knows which word each token comes from. In `encode` and `encode_words`, if `length` is
            above the checkpoint's maximum.
        ImportError: If the extra `text` is not installed.
    """

    def __init__(self, checkpoint: str | Path) -> None:
        transformers = needed("transformers", "text", "a pretrained tokenizer")
        try:
            self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(str(checkpoint))
        except Exception as error:  # from the network, the Hub, the file system or any tokenizer
            raise ValueError(
                f"the tokenizer of {checkpoint} can't be loaded ({first_line(error)}); give a "
                "folder or a Hub id that has one"
            ) from error
        if not self.tokenizer.is_fast:
            raise ValueError(
                f"the tokenizer of {checkpoint} is {type(self.tokenizer).__name__}; choose a "
                "checkpoint with a fast one"
            )

    @cached_property
    def name(self) -> str:
        return fingerprint(type(self.tokenizer).__name__, self.tokenizer.backend_tokenizer.to_str())

    @property
    def vocabulary(self) -> int:
        return len(self.tokenizer) + 1

    def encode(self, texts: Sequence[str], length: int) -> Ids:
        encoded = self._call(list(texts), length)
        return _padded(_shifted(encoded), len(texts), length)

    def encode_words(self, sentences: Sequence[Sequence[str]], length: int) -> tuple[Ids, Firsts]:
        encoded = self._call([list(words) for words in sentences], length, is_split_into_words=True)
        ids = _padded(_shifted(encoded), len(sentences), length)
        firsts = np.zeros(ids.shape, dtype=np.bool_)
        for n in range(len(sentences)):
            words = encoded.word_ids(n)
            firsts[n, : len(words)] = [
                word is not None and word != before
                for word, before in zip(words, [None, *words], strict=False)
            ]
        return ids, firsts

    def _call(self, texts: list[Any], length: int, **options: Any) -> Any:
        if length > self.tokenizer.model_max_length:
            raise ValueError(
                f"length is {length}; this checkpoint takes at most "
                f"{self.tokenizer.model_max_length}"
            )
        return self.tokenizer(texts, truncation=True, max_length=length, **options)


def _shifted(encoded: Any) -> Iterable[list[int]]:
    return ([i + 1 for i in row] for row in encoded["input_ids"])


def _padded(rows: Iterable[list[int]], count: int, length: int) -> Ids:
    """Return lists of at most `length` ids as an array (count, length), padded with 0."""
    ids = np.zeros((count, length), np.int32)
    for n, row in enumerate(rows):
        ids[n, : len(row)] = row
    return ids
