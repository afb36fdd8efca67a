"""Named entities: a tag for every word, and the score that whole entities get."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from everloop.envs.data.examples import NO_LABEL, Array, Examples
from everloop.envs.data.hub import check_splits, located
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
    """Train and test sentences: inputs (N, length), labels (N, length) with each word's tag at its
    first token, else `NO_LABEL`.

    source, tokenizer, columns, test_split: as in `load_text`. length: tokens that are kept of a
        sentence; words behind them are neither learned nor judged.
    tokens: name of the column with each sentence's words.
    tags: name of the column with one tag a word, class labels or strings in the form IOB2:
        B-person, I-person, O. The classes are those tags.
    Raises ValueError for what is missing or can't be used, and keeps nothing of it.
    """
    tokenizer, names = checked(tokenizer, length), (tokens, tags, *columns)
    key, splits = located("tags", source, repr((FORMAT, tokenizer.name, length, names, test_split)))

    def read(scratch: Path) -> dict[str, Array]:
        data = splits(scratch)
        both = ("train", test_split)
        check_splits(data, source, both, names)
        words = [_lists(data, split, tokens, str, "lists of words") for split in both]
        spoken, classes = _tags(data, both, tags)
        inputs, labels = [], []
        for split, sentences, tagged in zip(both, words, spoken, strict=True):
            for row, (sentence, own) in enumerate(zip(sentences, tagged, strict=True)):
                if len(sentence) != len(own):
                    raise ValueError(
                        f"row {row} of {split} has {len(sentence)} words and {len(own)} tags, "
                        "allowed: as many"
                    )
            ids, firsts = tokenizer.encode_words(sentences, length)
            inputs.append(ids)
            labels.append(_at(firsts, tagged))
        return arrays_of(data, both, inputs, labels, classes, columns)

    return kept(key, read, tokenizer.vocabulary)


def entity_f1(labels: Tags, guesses: Tags, tags: Sequence[str]) -> float:
    """Micro-averaged F1 of entities, whole and with the right type (seqeval, IOB2; extra `text`).

        F1 = 2 TP / (2 TP + FP + FN)      TP: spans that are in both with the same ends and type

    labels, guesses: (N, L), positions in `tags`; what has no label, below 0, is left out. 0 where
        no entity is in either.
    """
    metrics: Any = needed("seqeval.metrics", "text", "the score of entities")
    names = np.asarray(tags, dtype=object)
    told = [
        (names[row[row >= 0]].tolist(), names[guess[row >= 0]].tolist())
        for row, guess in zip(labels, guesses, strict=True)
    ]
    return float(
        metrics.f1_score(
            [true for true, _ in told],
            [guess for _, guess in told],
            average="micro",
            zero_division=0,
        )
    )


def _at(firsts: npt.NDArray[np.bool_], tagged: Sequence[Sequence[int]]) -> Tags:
    """Tags at the places where words begin."""
    labels = np.full(firsts.shape, NO_LABEL, np.int64)
    for row, own in enumerate(tagged):
        places = np.flatnonzero(firsts[row])
        labels[row, places] = own[: len(places)]
    return labels


def _lists(data: Any, split: str, name: str, kind: type, allowed: str) -> list[Any]:
    rows = list(data[split][name])
    for row in rows:
        if not isinstance(row, list) or not all(isinstance(value, kind) for value in row):
            raise ValueError(
                f"column {name!r} of {split} holds {data[split].features[name]}, allowed: {allowed}"
            )
    return rows


def _tags(
    data: Any, splits: Sequence[str], name: str
) -> tuple[list[list[list[int]]], Sequence[str]]:
    """Each split's tags as positions among the classes, and the classes; of tags without names
    those of the first split.
    """
    allowed = "lists of tags, class labels or strings"
    classes: Sequence[str] | None = getattr(
        getattr(data[splits[0]].features[name], "feature", None), "names", None
    )
    if classes is not None:
        return [_lists(data, split, name, int, allowed) for split in splits], classes
    rows = [_lists(data, split, name, str, allowed) for split in splits]
    classes = sorted({tag for row in rows[0] for tag in row})
    number = {tag: i for i, tag in enumerate(classes)}
    for row in rows[1]:
        if stray := [tag for tag in row if tag not in number]:
            raise ValueError(
                f"tag {stray[0]!r} is in {splits[1]} only, allowed: the tags of {splits[0]}"
            )
    return [[[number[tag] for tag in row] for row in part] for part in rows], classes
