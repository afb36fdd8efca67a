"""Several data sets as one, each of them a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from everloop.envs.data.examples import Examples

TASK = "task"  # name of the column that holds each example's data set


def from_tasks(tasks: Mapping[str, tuple[Examples, Examples]]) -> tuple[Examples, Examples]:
    """Join several data sets into one, for `ByColumn("task", order=list(tasks))`.

    Classes of the same name are the same class. Tasks with names in common thus share their
    classes, as domains do; otherwise each task has its own. Columns that all data sets have are
    kept.

    Args:
        tasks: Name of the task -> (train, test) examples, in the order of the tasks.

    Returns:
        (train, test) examples with the column "task".

    Raises:
        ValueError: If there is no data set, or if the examples differ in shape or kind.
    """
    if not tasks:
        raise ValueError("tasks is empty; give at least one data set, name -> (train, test)")
    first = next(iter(tasks))
    model = tasks[first][0]
    for name, (train, test) in tasks.items():
        for part in (train, test):
            _check_alike(name, part, first, model)
        if list(test.classes) != list(train.classes):
            raise ValueError(
                f"the test classes of {name!r} are {list(test.classes)}; they must be those of "
                f"training, {list(train.classes)}"
            )
    classes = list(dict.fromkeys(c for train, _ in tasks.values() for c in train.classes))
    train, test = (
        _together({name: pair[s] for name, pair in tasks.items()}, classes) for s in range(2)
    )
    return train, test


def _check_alike(name: str, part: Examples, first: str, model: Examples) -> None:
    """Raise ValueError unless the examples of task `name` are like `model`, those of `first`."""
    found, wanted = (f"{x.inputs.dtype} of shape {x.inputs.shape[1:]}" for x in (part, model))
    if found != wanted:
        raise ValueError(
            f"examples of {name!r} are {found} each; they must be {wanted}, as in {first!r}"
        )
    if part.labels.ndim != model.labels.ndim:
        raise ValueError(
            f"labels of {name!r} have {part.labels.ndim} dimensions; they must have "
            f"{model.labels.ndim}, as in {first!r}"
        )


def _together(parts: Mapping[str, Examples], classes: Sequence[str]) -> Examples:
    # each part's class numbers in `classes`; the last entry maps -1, no label, to itself
    numbers = [np.array([*(classes.index(c) for c in part.classes), -1]) for part in parts.values()]
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
    vocabulary_size = max(part.vocabulary_size for part in parts.values())
    return Examples(inputs, labels, tuple(classes), columns, vocabulary_size)
