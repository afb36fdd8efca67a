"""Tokenizers: texts become ids of a fixed length that depend on nothing but the text."""

import sys
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everloop.envs.data import HashTokenizer, PretrainedTokenizer

PIECES = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "play",
    "##ing",
    "##s",
    "the",
    "chess",
    ".",
    "un",
    "##known",
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A WordPiece tokenizer with the vocabulary `PIECES`."""
    from transformers import BertTokenizerFast

    folder = tmp_path_factory.mktemp("tokenizer")
    vocabulary = {piece: i for i, piece in enumerate(PIECES)}
    BertTokenizerFast(vocab=vocabulary, model_max_length=8).save_pretrained(folder)
    return folder


def ids(*pieces: str) -> list[int]:
    return [PIECES.index(piece) + 1 for piece in pieces]


def test_a_hashed_word_is_the_crc32_of_its_lower_case() -> None:
    encoded = HashTokenizer(1000).encode(["The cat, the CAT!", ""], 8)
    numbers = {word: 1 + crc32(word.encode()) % 999 for word in ("the", "cat", ",", "!")}
    assert encoded.tolist() == [
        [numbers[w] for w in ("the", "cat", ",", "the", "cat", "!")] + [0, 0],
        [0] * 8,
    ]
    assert encoded.dtype == np.int32


@given(
    texts=st.lists(st.text(), min_size=1, max_size=5),
    length=st.integers(1, 9),
    vocabulary=st.integers(2, 50),
)
@settings(deadline=None)
def test_the_ids_of_a_hashed_text_depend_only_on_the_text(
    texts: list[str], length: int, vocabulary: int
) -> None:
    """No vocabulary could leak other texts. Padding, 0, is only at the end."""
    tokenizer = HashTokenizer(vocabulary)
    together = tokenizer.encode(texts, length)
    assert together.shape == (len(texts), length)
    assert together.min() >= 0
    assert together.max() < tokenizer.vocabulary == vocabulary
    for text, row in zip(texts, together, strict=True):
        np.testing.assert_array_equal(tokenizer.encode([text], length)[0], row)
        np.testing.assert_array_equal(tokenizer.encode([text], length + 3)[0, :length], row)
        words = int((row > 0).sum())
        assert (row[:words] > 0).all()


@given(
    sentences=st.lists(st.lists(st.text(min_size=1), max_size=6), min_size=1, max_size=4),
    length=st.integers(1, 8),
)
@settings(deadline=None)
def test_a_hashed_word_is_one_token(sentences: list[list[str]], length: int) -> None:
    encoded, firsts = HashTokenizer().encode_words(sentences, length)
    assert firsts.sum(1).tolist() == [min(len(words), length) for words in sentences]
    np.testing.assert_array_equal(firsts, encoded > 0)


def test_pretrained_ids_are_shifted_by_1_for_padding(checkpoint: Path) -> None:
    tokenizer = PretrainedTokenizer(checkpoint)
    assert tokenizer.vocabulary == len(PIECES) + 1
    encoded = tokenizer.encode(["playing chess.", "the"], 7)
    assert encoded.tolist() == [
        [*ids("[CLS]", "play", "##ing", "chess", ".", "[SEP]"), 0],
        ids("[CLS]", "the", "[SEP]") + [0] * 4,
    ]
    assert encoded.dtype == np.int32
    assert tokenizer.encode(["playing chess."], 4).tolist() == [
        ids("[CLS]", "play", "##ing", "[SEP]")
    ]


def test_encode_words_marks_the_first_token_of_each_word(checkpoint: Path) -> None:
    encoded, firsts = PretrainedTokenizer(checkpoint).encode_words(
        [["Playing", "plays", "the"], ["unknown", "the"]], 7
    )
    assert encoded.tolist() == [
        ids("[CLS]", "play", "##ing", "play", "##s", "the", "[SEP]"),
        [*ids("[CLS]", "un", "##known", "the", "[SEP]"), 0, 0],
    ]
    assert firsts.tolist() == [
        [False, True, False, True, False, True, False],
        [False, True, False, True, False, False, False],
    ]


def test_different_tokenizers_have_different_names(checkpoint: Path, tmp_path: Path) -> None:
    """The cache tells tokenizers apart by their names."""
    from transformers import BertTokenizerFast

    BertTokenizerFast(
        vocab={piece: i for i, piece in enumerate([*PIECES, "more"])}
    ).save_pretrained(tmp_path)
    first = PretrainedTokenizer(checkpoint)
    assert first.name == PretrainedTokenizer(str(checkpoint)).name
    others = [PretrainedTokenizer(tmp_path), HashTokenizer(), HashTokenizer(10)]
    assert len({tokenizer.name for tokenizer in (first, *others)}) == 4


def test_a_vocabulary_without_words_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^vocabulary is 1; it must be 2 or more$"):
        HashTokenizer(1)


def test_a_length_above_the_checkpoints_limit_is_refused(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match=r"^length is 9; this checkpoint takes at most 8$"):
        PretrainedTokenizer(checkpoint).encode(["the"], 9)


def test_a_missing_checkpoint_is_refused_by_its_path(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError,
        match=(
            rf"^the tokenizer of {tmp_path}/nothing can't be loaded \([^\n]*\); give a folder or a "
            r"Hub id that has one$"
        ),
    ) as caught:
        PretrainedTokenizer(tmp_path / "nothing")
    assert "\n" not in str(caught.value)


def test_a_slow_tokenizer_is_refused(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import BertTokenizerFast

    monkeypatch.setattr(BertTokenizerFast, "is_fast", False)
    with pytest.raises(ValueError, match=r"is \w+; choose a checkpoint with a fast one$"):
        PretrainedTokenizer(checkpoint)


def test_a_pretrained_tokenizer_without_transformers_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        ImportError,
        match=(
            r"^a pretrained tokenizer needs the package transformers: pip install "
            r'"everloop\[text\]"$'
        ),
    ):
        PretrainedTokenizer("bert-base-uncased")
