"""Labelled examples of one split, which every data source returns and every stream presents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
NO_LABEL = -1
"""The label of a position that is not scored, such as padding."""


@dataclass(frozen=True)
class Examples:
    """N labelled examples.

    Args:
        inputs: uint8 images (N, H, W, C); int32 token ids (N, L), 0 after the end of a text; or
            float32 features (N, D).
        labels: int64 indices into `classes`, (N,); or tags (N, L), `NO_LABEL` for a token without
            one.
        classes: Names of the classes, the same in every split.
        columns: Column name -> strings (N,), whatever else is known about each example, such as
            its domain.
        vocabulary_size: Token ids are from 0 to vocabulary_size - 1. Others do not use it.

    Raises:
        ValueError: If the arrays do not fit together. The message is one line that names the
            value.
    """

    inputs: Array
    labels: npt.NDArray[np.int64]
    classes: Sequence[str]
    columns: Mapping[str, Array] = field(default_factory=dict)
    vocabulary_size: int = 256

    def __post_init__(self) -> None:
        count = len(self.inputs)
        if not count:
            raise ValueError("there are 0 examples; give at least one")
        if self.labels.shape not in (self.inputs.shape[:1], self.inputs.shape[:2]):
            raise ValueError(
                f"{count} examples have labels of shape {self.labels.shape}; "
                f"it must be ({count},), or (N, L) for tags"
            )
        least = 0 if self.labels.ndim == 1 else NO_LABEL
        _check_range("label", self.labels, least, len(self.classes) - 1)
        if self.inputs.dtype.kind == "i":
            _check_range("token id", self.inputs, 0, self.vocabulary_size - 1)
        for name, column in self.columns.items():
            if column.shape != (count,):
                raise ValueError(
                    f"column {name!r} has shape {column.shape}; it must be ({count},), "
                    "one string per example"
                )

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, indices: npt.NDArray[np.int64]) -> Examples:
        """Return the examples at `indices`, int (n,) or a mask, bool (N,)."""
        columns = {name: column[indices] for name, column in self.columns.items()}
        return Examples(
            self.inputs[indices], self.labels[indices], self.classes, columns, self.vocabulary_size
        )


def _check_range(name: str, values: Array, least: int, most: int) -> None:
    low, high = values.min(), values.max()
    if low < least or high > most:
        raise ValueError(
            f"a {name} is {low if low < least else high}; it must be from {least} to {most}"
        )


def check_pair(train: Examples, test: Examples) -> None:
    """Raise ValueError unless the two splits have inputs of one shape and the same classes."""
    if train.inputs.shape[1:] != test.inputs.shape[1:]:
        raise ValueError(
            f"a test example has shape {test.inputs.shape[1:]}; it must be "
            f"{train.inputs.shape[1:]}, as in training"
        )
    if list(train.classes) != list(test.classes):
        raise ValueError(
            f"the test classes are {list(test.classes)}; they must be those of training, "
            f"{list(train.classes)}"
        )


def check_kind(
    pair: tuple[Examples, Examples], name: str, dtype: type, ndim: int, wanted: str
) -> tuple[Examples, Examples]:
    """Return `pair` if both splits have inputs of this kind.

    Args:
        pair: (train, test).
        name: What the inputs are called in an error.
        dtype: Their dtype.
        ndim: Their number of dimensions.
        wanted: The kind in words, for an error.

    Raises:
        ValueError: If they are of another kind.
    """
    for split, part in zip(("train", "test"), pair, strict=True):
        if part.inputs.dtype != dtype or part.inputs.ndim != ndim:
            raise ValueError(
                f"{split} {name} are {part.inputs.dtype} of shape {part.inputs.shape}; "
                f"they must be {wanted}"
            )
    return pair


def opened(arrays: Mapping[str, Array], split: str) -> Examples:
    """Return the examples of one split from the arrays that a cache stores.

    Args:
        arrays: "{split}/inputs", "{split}/labels" and "{split}/columns/{name}" of each split;
            "classes" and, for texts, "levels", the vocabulary's size.
        split: "train" or "test".
    """
    start = f"{split}/columns/"
    columns = {
        name.removeprefix(start): column
        for name, column in arrays.items()
        if name.startswith(start)
    }
    return Examples(
        arrays[f"{split}/inputs"],
        arrays[f"{split}/labels"],
        tuple(arrays["classes"].tolist()),
        columns,
        int(arrays["levels"]) if "levels" in arrays else 256,
    )
