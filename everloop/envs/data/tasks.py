"""Data sets of one's own, each a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from everloop.envs.data.examples import Examples

TASK = "task"  # the column that tells which data set an example is from


def from_tasks(tasks: Mapping[str, tuple[Examples, Examples]]) -> tuple[Examples, Examples]:
    """Train and test examples of several data sets together, for `ByColumn("task",
    order=list(tasks))`.

    tasks: name -> (train, test), in the order of the tasks. Classes of the same name are the same
        class: with names in common the tasks share their classes, as domains do, otherwise each
        has its own.
    Columns that all have in common are kept. Raises ValueError for data sets whose examples differ
    in shape or kind.
    """
    if not tasks:
        raise ValueError("tasks are empty, allowed: name -> (train, test), one or more")
    first = next(iter(tasks.values()))[0]
    for name, pair in tasks.items():
        for part in pair:
            if (part.inputs.dtype, part.inputs.shape[1:]) != (
                first.inputs.dtype,
                first.inputs.shape[1:],
            ):
                found, wanted = (
                    f"{x.inputs.dtype} of shape {x.inputs.shape[1:]}" for x in (part, first)
                )
                raise ValueError(
                    f"examples of {name!r} are {found} each, allowed: {wanted} as in "
                    f"{next(iter(tasks))!r}"
                )
            if part.labels.ndim != first.labels.ndim:
                raise ValueError(
                    f"labels of {name!r} have {part.labels.ndim} dimensions, allowed: "
                    f"{first.labels.ndim}"
                )
            if list(part.classes) != list(pair[0].classes):
                raise ValueError(
                    f"the test classes of {name!r} are {list(part.classes)}, allowed: those of "
                    "training"
                )
    classes = list(dict.fromkeys(c for train, _ in tasks.values() for c in train.classes))
    train, test = (
        _together({name: pair[s] for name, pair in tasks.items()}, classes) for s in range(2)
    )
    return train, test


def _together(parts: Mapping[str, Examples], classes: Sequence[str]) -> Examples:
    numbers = [
        np.array([*(classes.index(c) for c in part.classes), -1]) for part in parts.values()
    ]  # -1, no label, stays
    labels = np.concatenate(
        [number[part.labels] for number, part in zip(numbers, parts.values(), strict=True)]
    )
    inputs = np.concatenate([part.inputs for part in parts.values()])
    common = set.intersection(*(set(part.columns) for part in parts.values()))
    columns = {
        name: np.concatenate([part.columns[name] for part in parts.values()])
        for name in sorted(common)
    }
    columns[TASK] = np.repeat(list(parts), [len(part) for part in parts.values()])
    return Examples(
        inputs,
        labels,
        tuple(classes),
        columns,
        max(part.vocabulary_size for part in parts.values()),
    )
