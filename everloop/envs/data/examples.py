"""Labelled examples of one split: what every source gives and every stream serves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
NO_LABEL = -1  # of a position that is not judged, such as padding


@dataclass(frozen=True)
class Examples:
    """N examples.

    inputs: uint8 images (N, H, W, C), or int32 token ids (N, L), 0 where a text is over.
    labels: int64 (N,), indices into `classes`; or tags (N, L), `NO_LABEL` where a token has none.
    classes: names of the classes, the same in every split.
    columns: name -> (N,) array of strings, whatever else is known about each example, such as its
        domain.
    levels: every input is from 0 to levels - 1: grey levels, or the vocabulary's size.
    Raises ValueError, in one line that names the value, for arrays that do not fit together.
    """

    inputs: Array
    labels: npt.NDArray[np.int64]
    classes: Sequence[str]
    columns: Mapping[str, Array] = field(default_factory=dict)
    levels: int = 256

    def __post_init__(self) -> None:
        inputs, labels = self.inputs, self.labels
        if not len(inputs):
            raise ValueError("there are 0 examples, allowed: 1 or more")
        if labels.shape not in (inputs.shape[:1], inputs.shape[:2]):
            raise ValueError(
                f"{len(inputs)} examples have labels of shape {labels.shape}, allowed: "
                f"({len(inputs)},)"
            )
        if labels.min() < (0 if labels.ndim == 1 else NO_LABEL) or labels.max() >= len(
            self.classes
        ):
            bad = labels.min() if labels.min() < 0 else labels.max()
            raise ValueError(
                f"label {bad} is not among the {len(self.classes)} classes, allowed: 0 to "
                f"{len(self.classes) - 1}"
            )
        if inputs.dtype != np.uint8 and (inputs.min() < 0 or inputs.max() >= self.levels):
            bad = inputs.min() if inputs.min() < 0 else inputs.max()
            raise ValueError(f"an input is {bad}, allowed: 0 to {self.levels - 1}")
        for name, column in self.columns.items():
            if column.shape != inputs.shape[:1]:
                raise ValueError(
                    f"column {name!r} has shape {column.shape}, allowed: ({len(inputs)},)"
                )

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, rows: npt.NDArray[np.int64]) -> Examples:
        """The examples in `rows`."""
        columns = {name: column[rows] for name, column in self.columns.items()}
        return Examples(self.inputs[rows], self.labels[rows], self.classes, columns, self.levels)


def opened(arrays: Mapping[str, Array], split: str) -> Examples:
    """The examples that a cache keeps of a split: its "inputs", "labels" and "columns/...", and
    "classes" and "levels" of all.
    """
    start = f"{split}/columns/"
    columns = {
        name.removeprefix(start): column
        for name, column in arrays.items()
        if name.startswith(start)
    }
    levels = int(arrays["levels"]) if "levels" in arrays else 256
    return Examples(
        arrays[f"{split}/inputs"],
        arrays[f"{split}/labels"],
        tuple(arrays["classes"].tolist()),
        columns,
        levels,
    )
