"""Tokenizers: text becomes int32 token ids, 0 where it is over."""

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
WORD = re.compile(r"\w+|[^\w\s]")  # words and numbers; every other mark by itself


class Tokenizer(Protocol):
    """What sources of text ask of a tokenizer.

    name: says what it does to a text; texts in the cache are known by it. vocabulary: ids are from
        0 to vocabulary - 1.
    """

    @property
    def name(self) -> str: ...

    @property
    def vocabulary(self) -> int: ...

    def encode(self, texts: Sequence[str], length: int) -> Ids:
        """Ids (N, length) of each text's first tokens, then 0."""

    def encode_words(self, sentences: Sequence[Sequence[str]], length: int) -> tuple[Ids, Firsts]:
        """Ids (N, length) of words, and which of them begin a word, bool (N, length)."""


class HashTokenizer(Tokenizer):
    """A lower-cased word's id is 1 + crc32(word) mod (vocabulary - 1) (Weinberger et al. 2009,
    "Feature hashing").

    It has seen no text at all, so that nothing of a later task, or of a test text, is in its
    vocabulary. Raises ValueError for a vocabulary below 2.
    """

    def __init__(self, vocabulary: int = 2**15) -> None:
        if vocabulary < 2:
            raise ValueError(f"vocabulary is {vocabulary}, allowed: 2 or more")
        self.size = vocabulary

    @property
    def name(self) -> str:
        return f"crc32 {self.size}"

    @property
    def vocabulary(self) -> int:
        return self.size

    def encode(self, texts: Sequence[str], length: int) -> Ids:
        return _padded(
            ([self._id(word) for word in WORD.findall(text)[:length]] for text in texts),
            len(texts),
            length,
        )

    def encode_words(self, sentences: Sequence[Sequence[str]], length: int) -> tuple[Ids, Firsts]:
        ids = _padded(
            ([self._id(word) for word in words[:length]] for words in sentences),
            len(sentences),
            length,
        )
        return ids, ids > 0

    def _id(self, word: str) -> int:
        return 1 + crc32(word.lower().encode(errors="replace")) % (self.size - 1)


class PretrainedTokenizer(Tokenizer):
    """A Hugging Face tokenizer (extra `text`), with its special tokens; an id here is its own id +
    1, so that 0 stays free.

    checkpoint: a local folder or a Hub id. `everloop.agents.TransformerEncoder` takes the 1 off
    again. Raises ValueError for one that can't be loaded, or that can't tell which word a token is
    from.
    """

    def __init__(self, checkpoint: str | Path) -> None:
        transformers = needed("transformers", "text", "a pretrained tokenizer")
        try:
            self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(str(checkpoint))
        except Exception as error:  # of the network, the Hub, the file system, or of any tokenizer
            allowed = "a folder or an id of the Hub that has one"
            raise ValueError(
                f"the tokenizer of {checkpoint} can't be loaded ({first_line(error)}), allowed: "
                f"{allowed}"
            ) from error
        if not self.tokenizer.is_fast:
            raise ValueError(
                f"the tokenizer of {checkpoint} is {type(self.tokenizer).__name__}, allowed: a "
                "fast one"
            )

    @cached_property
    def name(self) -> str:
        return fingerprint(type(self.tokenizer).__name__, self.tokenizer.backend_tokenizer.to_str())

    @property
    def vocabulary(self) -> int:
        return len(self.tokenizer) + 1

    def encode(self, texts: Sequence[str], length: int) -> Ids:
        return _padded(
            ([i + 1 for i in row] for row in self._call(list(texts), length)["input_ids"]),
            len(texts),
            length,
        )

    def encode_words(self, sentences: Sequence[Sequence[str]], length: int) -> tuple[Ids, Firsts]:
        encoded = self._call([list(words) for words in sentences], length, is_split_into_words=True)
        ids = _padded(
            ([i + 1 for i in row] for row in encoded["input_ids"]), len(sentences), length
        )
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
                f"length is {length}, allowed for this checkpoint: up to "
                f"{self.tokenizer.model_max_length}"
            )
        return self.tokenizer(texts, truncation=True, max_length=length, **options)


def _padded(rows: Iterable[list[int]], count: int, length: int) -> Ids:
    ids = np.zeros((count, length), np.int32)
    for n, row in enumerate(rows):
        ids[n, : len(row)] = row
    return ids
