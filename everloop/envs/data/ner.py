"""Named-entity recognition: sentences with a tag for every word, and the F1 of whole entities."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from everloop.envs.data.examples import NO_LABEL, Array, Examples
from everloop.envs.data.hub import check_splits, located, without_marks
from everloop.envs.data.optional import needed
from everloop.envs.data.text import FORMAT, arrays_of, checked, kept
from everloop.envs.data.tokens import Tokenizer

Tags = npt.NDArray[np.int64]


def load_ner(
    source: str | Path,
    *,
    tokenizer: Tokenizer | None = None,
    length: int = 64,
    tokens: str = "tokens",
    tags: str = "ner_tags",
    columns: Sequence[str] = (),
    test_split: str = "test",
) -> tuple[Examples, Examples]:
    """Load tagged sentences. The first call tokenizes them; later ones map them from the cache.

    If a call fails, the cache keeps nothing of it.

    Args:
        source: As in `load_text`.
        tokenizer: As in `load_text`.
        length: Tokens to keep of each sentence, 1 or more. Words beyond them are neither learned
            nor scored.
        tokens: Name of the column with each sentence's words.
        tags: Name of the column with one tag per word, class labels or strings in the form IOB2:
            B-person, I-person, O. The tags are the classes.
        columns: As in `load_text`.
        test_split: As in `load_text`.

    Returns:
        (train, test) examples, inputs and labels (N, length). A word's tag is at its first token;
        all other labels are `NO_LABEL`.

    Raises:
        ValueError: If something is missing or cannot be used.
        ImportError: If the extra `data` is needed and not installed.
    """
    tokenizer = checked(tokenizer, length)
    names = (tokens, tags, *columns)
    key, splits = located("tags", source, repr((FORMAT, tokenizer.name, length, names, test_split)))

    def read(scratch: Path) -> dict[str, Array]:
        data = splits(scratch)
        both = ("train", test_split)
        check_splits(data, source, both, names)
        words = [
            [without_marks(row) for row in _lists(data, split, tokens, str, "lists of words")]
            for split in both
        ]
        word_tags, classes = _tags(data, both, tags)
        inputs = []
        labels = []
        for split, sentences, tagged in zip(both, words, word_tags, strict=True):
            _check_counts(split, sentences, tagged)
            ids, firsts = tokenizer.encode_words(sentences, length)
            inputs.append(ids)
            labels.append(_at(firsts, tagged))
        return arrays_of(data, both, inputs, labels, classes, columns)

    return kept(key, read, tokenizer.vocabulary)


def entity_f1(labels: Tags, guesses: Tags, tags: Sequence[str]) -> float:
    """Return the micro-averaged F1 of whole entities (seqeval, IOB2; extra `text`).

        F1 = 2 TP / (2 TP + FP + FN)      TP: spans that are in both with the same ends and type

    Args:
        labels: True tags, indices into `tags`, (N, L). Positions below 0 have no label and are
            left out.
        guesses: Guessed tags, indices into `tags`, (N, L).
        tags: Names of the tags.

    Returns:
        The F1, from 0 to 1; 0 if neither side has an entity.

    Raises:
        ImportError: If the extra `text` is not installed.
    """
    metrics: Any = needed("seqeval.metrics", "text", "the score of entities")
    names = np.asarray(tags, dtype=object)
    scored = labels >= 0
    true = [names[row[mask]].tolist() for row, mask in zip(labels, scored, strict=True)]
    guessed = [names[row[mask]].tolist() for row, mask in zip(guesses, scored, strict=True)]
    return float(metrics.f1_score(true, guessed, average="micro", zero_division=0))


def _at(firsts: npt.NDArray[np.bool_], tagged: Sequence[Sequence[int]]) -> Tags:
    """Return labels (N, L) with the tags of each sentence where its words begin."""
    labels = np.full(firsts.shape, NO_LABEL, np.int64)
    for row, own in enumerate(tagged):
        places = np.flatnonzero(firsts[row])
        labels[row, places] = own[: len(places)]
    return labels


def _check_counts(split: str, sentences: Sequence[Any], tagged: Sequence[Any]) -> None:
    for row, (words, tags) in enumerate(zip(sentences, tagged, strict=True)):
        if len(words) != len(tags):
            raise ValueError(
                f"row {row} of {split} has {len(words)} words and {len(tags)} tags; "
                "it needs one tag per word"
            )


def _lists(data: Any, split: str, name: str, kind: type, wanted: str) -> list[Any]:
    """Return a column of lists of `kind`."""
    rows = list(data[split][name])
    for row in rows:
        if not isinstance(row, list) or not all(isinstance(value, kind) for value in row):
            raise ValueError(
                f"column {name!r} of {split} holds {data[split].features[name]}; "
                f"it must hold {wanted}"
            )
    return rows


def _tags(
    data: Any, splits: Sequence[str], name: str
) -> tuple[list[list[list[int]]], Sequence[str]]:
    """Return each split's tags as indices into the classes, and the classes.

    Tags without names get the values in the first split as their classes.
    """
    wanted = "lists of tags, class labels or strings"
    classes: Sequence[str] | None = getattr(
        getattr(data[splits[0]].features[name], "feature", None), "names", None
    )
    if classes is not None:
        return [_lists(data, split, name, int, wanted) for split in splits], classes
    rows = [_lists(data, split, name, str, wanted) for split in splits]
    classes = sorted({tag for row in rows[0] for tag in row})
    number = {tag: i for i, tag in enumerate(classes)}
    for row in rows[1]:
        if stray := [tag for tag in row if tag not in number]:
            raise ValueError(
                f"tag {stray[0]!r} is in {splits[1]} only; {splits[0]} must have it too"
            )
    return [[[number[tag] for tag in row] for row in part] for part in rows], classes
