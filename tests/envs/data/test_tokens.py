"""Texts become ids of a fixed length, the same on every machine and whatever other texts
there are.
"""

import json
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everloop.envs.data import HashTokenizer, PretrainedTokenizer, Tokenizer

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


def test_a_word_is_its_checksum_whatever_its_case() -> None:
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
def test_a_hashed_text_depends_on_nothing_but_itself(
    texts: list[str], length: int, vocabulary: int
) -> None:
    """Nothing can leak through a vocabulary. Padding, 0, is only at the end."""
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


def test_a_pretrained_tokenizers_ids_are_its_own_plus_1(checkpoint: Path) -> None:
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


def test_each_words_first_piece_is_told(checkpoint: Path) -> None:
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


def test_tokenizers_that_differ_have_other_names(checkpoint: Path, tmp_path: Path) -> None:
    """Texts in the cache are known by them."""
    from transformers import BertTokenizerFast

    BertTokenizerFast(
        vocab={piece: i for i, piece in enumerate([*PIECES, "more"])}
    ).save_pretrained(tmp_path)
    one = PretrainedTokenizer(checkpoint)
    assert one.name == PretrainedTokenizer(str(checkpoint)).name
    assert (
        len(
            {
                one.name,
                PretrainedTokenizer(tmp_path).name,
                HashTokenizer().name,
                HashTokenizer(10).name,
            }
        )
        == 4
    )


def without_name_or_fast_form(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Tokenizer:
    from transformers import BertTokenizerFast

    monkeypatch.setattr(BertTokenizerFast, "is_fast", False)
    return PretrainedTokenizer(checkpoint)


def test_what_is_wrong_is_named(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"^vocabulary is 1; it must be 2 or more$"):
        HashTokenizer(1)
    with pytest.raises(ValueError, match=r"^length is 9; this checkpoint takes at most 8$"):
        PretrainedTokenizer(checkpoint).encode(["the"], 9)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(
        ValueError,
        match=(
            rf"^the tokenizer of {tmp_path}/nothing can't be loaded \([^\n]*\); give a "
            r"folder or a Hub id that has one$"
        ),
    ) as caught:
        PretrainedTokenizer(tmp_path / "nothing")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"is \w+; choose a checkpoint with a fast one$"):
        without_name_or_fast_form(checkpoint, monkeypatch)


def test_a_library_that_is_not_installed_says_which_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        ImportError,
        match=(
            "^a pretrained tokenizer needs the package transformers: pip install "
            r'"everloop\[text\]"$'
        ),
    ):
        PretrainedTokenizer("bert-base-uncased")
