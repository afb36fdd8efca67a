"""How a data set becomes tasks: which examples a task holds, how it shows them, and which classes
it tells apart.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from everloop.contract import Task
from everloop.envs.data import Examples
from everloop.envs.views import permute_pixels, rotate_pixels

NO_ENTITY = "O"  # the tag of tokens outside any, in IOB2
Rows = npt.NDArray[np.int64]
Table = npt.NDArray[np.int64]
View = Callable[[npt.NDArray[Any], int], npt.NDArray[Any]]


@dataclass(frozen=True)
class Assignment:
    """K tasks made of a data set with C classes.

    train, test: the rows of each task in each split.
    within: (K, C), a class's number among those of one task, -1 where the task has it not.
    joint: (K, C), its number among those of all tasks together.
    view: (inputs, task) -> the inputs as that task shows them; None shows them as they are.
    """

    tasks: tuple[Task, ...]
    train: Sequence[Rows]
    test: Sequence[Rows]
    within: Table
    joint: Table
    view: View | None = None


class Protocol(ABC):
    """A way to make tasks of any data set.

    Raises ValueError, in one line, where it does not fit the data.
    """

    @abstractmethod
    def assign(self, train: Examples, test: Examples) -> Assignment:
        """The tasks of this data set."""


@dataclass(frozen=True)
class SplitClasses(Protocol):
    """Each task holds a group of the classes.

    classes_per_task: in the order of the classes, or in one shuffled by `seed`; a divisor of their
        number.
    groups: or the classes of each task, by name or number; a class may be in several, or in none.
    """

    classes_per_task: int = 2
    seed: int | None = None
    groups: Sequence[Sequence[str | int]] | None = None

    def assign(self, train: Examples, test: Examples) -> Assignment:
        groups = self._groups(train.classes)
        tasks = []
        for k, group in enumerate(groups):
            names = [train.classes[c] for c in group]
            title = (
                "-".join(names or ["no-classes"])
                if len(names) <= 4
                else f"{names[0]}-to-{names[-1]}"
            )
            tasks.append(Task(k, title, {"classes": names}))
        within = np.full((len(groups), len(train.classes)), -1)
        joint = within.copy()
        for k, group in enumerate(groups):
            within[k, group], joint[k, group] = np.arange(len(group)), group
        rows = [
            [np.flatnonzero(np.isin(_classes(data), group)) for group in groups]
            for data in (train, test)
        ]
        return Assignment(_distinct(tasks), rows[0], rows[1], within, joint)

    def _groups(self, classes: Sequence[str]) -> list[list[int]]:
        if self.groups is not None:
            return [[_find_class(classes, key) for key in group] for group in self.groups]
        size, count = self.classes_per_task, len(classes)
        if size < 1 or count % size:
            raise ValueError(
                f"classes_per_task is {size}, allowed: a divisor of the {count} classes"
            )
        order = (
            np.arange(count)
            if self.seed is None
            else np.random.default_rng(self.seed).permutation(count)
        )
        return [group.tolist() for group in order.reshape(-1, size)]


@dataclass(frozen=True)
class IBlurry(Protocol):
    """i-Blurry (Koh et al. 2022, "Online continual learning on class incremental blurry task
    configuration", section 3).

    `disjoint_ratio` of the classes belong to one task each; of every other class, `blur_ratio` of
    the training examples are scattered over the other tasks, evenly. Test examples stay with their
    class's own task.
    """

    num_tasks: int = 5
    disjoint_ratio: float = 0.5
    blur_ratio: float = 0.1
    seed: int = 0

    def assign(self, train: Examples, test: Examples) -> Assignment:
        for name, value in (
            ("disjoint_ratio", self.disjoint_ratio),
            ("blur_ratio", self.blur_ratio),
        ):
            check_ratio(name, value)
        if self.num_tasks < 2 or len(train.classes) % self.num_tasks:
            raise ValueError(
                f"num_tasks is {self.num_tasks}, allowed: a divisor, from 2 up, of the "
                f"{len(train.classes)} classes"
            )
        plain = SplitClasses(len(train.classes) // self.num_tasks, self.seed).assign(train, test)
        rng = np.random.default_rng([self.seed, 1])
        disjoint = rng.permutation(len(train.classes))[
            : round(self.disjoint_ratio * len(train.classes))
        ]
        home = np.argmax(plain.within >= 0, axis=0)[_classes(train)]
        place = home.copy()
        for c in np.setdiff1d(np.arange(len(train.classes)), disjoint):
            rows = rng.permutation(np.flatnonzero(_classes(train) == c))
            moved = rows[: round(self.blur_ratio * len(rows))]
            place[moved] = (
                home[moved] + 1 + np.arange(len(moved)) % (self.num_tasks - 1)
            ) % self.num_tasks
        number = np.arange(len(train.classes))
        everywhere = np.tile(number, (self.num_tasks, 1))  # any class may turn up in any task
        rows_of = [np.flatnonzero(place == k) for k in range(self.num_tasks)]
        return Assignment(plain.tasks, rows_of, plain.test, everywhere, everywhere)


@dataclass(frozen=True)
class ByColumn(Protocol):
    """Each value of a column is a task, a domain: reviews by product, characters by alphabet,
    groups by hierarchy.

    Tasks that share classes number them alike (positive is positive in books and in kitchens);
    tasks whose classes are all their own number them from 0 each. All together tell apart every
    pair of task and class, but for the tag "O" of tokens outside any entity, which is one.
    order: the column's values in the order of the tasks; sorted if none.
    """

    column: str = "domain"
    order: Sequence[str] | None = None

    def assign(self, train: Examples, test: Examples) -> Assignment:
        if self.column not in train.columns:
            raise ValueError(
                f"column is {self.column!r}, allowed: "
                f"{', '.join(train.columns) or 'none, the data has no columns'}"
            )
        columns = [data.columns[self.column].astype(str) for data in (train, test)]
        values = [
            str(value) for value in (np.unique(columns[0]) if self.order is None else self.order)
        ]
        rows = [[np.flatnonzero(column == value) for value in values] for column in columns]
        occurs = np.zeros((len(values), len(train.classes)), dtype=np.bool_)
        for k, own in enumerate(rows[0]):
            labels = train.labels[own]
            occurs[k, np.unique(labels[labels >= 0])] = True
        shared = bool((occurs.sum(0) > 1).any())
        if shared:
            occurs[:] = occurs.any(0)
        within = np.where(occurs, np.cumsum(occurs, axis=1) - 1, -1)
        fresh, outside = (
            occurs.copy(),
            [
                c
                for c, name in enumerate(train.classes)
                if name == NO_ENTITY and train.labels.ndim == 2
            ],
        )
        fresh[1:, outside] = False
        joint = np.where(occurs, np.cumsum(fresh).reshape(occurs.shape) - 1, -1)
        joint[:, outside] = joint[:1, outside]
        tasks = (
            Task(
                k,
                value,
                {
                    self.column: value,
                    "classes": [train.classes[int(c)] for c in np.flatnonzero(occurs[k])],
                },
            )
            for k, value in enumerate(values)
        )
        return Assignment(tuple(tasks), rows[0], rows[1], within, joint)


@dataclass(frozen=True)
class Permuted(Protocol):
    """Every task shows all images with their pixels in another fixed order; task 0 as they are
    (Goodfellow et al. 2013).
    """

    num_tasks: int = 10
    seed: int = 0

    def assign(self, train: Examples, test: Examples) -> Assignment:
        _check_tasks(self.num_tasks)
        pixels = int(np.prod(_image_shape(train)[:2]))
        orders = [np.arange(pixels)] + [
            np.random.default_rng([self.seed, k]).permutation(pixels)
            for k in range(1, self.num_tasks)
        ]
        tasks = [
            Task(k, f"permutation-{k}", {"seed": [self.seed, k] if k else None})
            for k in range(self.num_tasks)
        ]
        return _all_examples(tasks, train, test, permute_pixels(orders))


@dataclass(frozen=True)
class Rotated(Protocol):
    """Every task shows all images turned by another angle, in degrees (Lopez-Paz & Ranzato 2017,
    section 5.1).

    angles: of each task; if none, `num_tasks` angles from 0 in equal steps below 180, or with a
        `seed` drawn from 0 to 180, each angle as likely as another (Buzzega et al. 2020, section
        4.1).
    """

    num_tasks: int = 10
    angles: Sequence[float] | None = None
    seed: int | None = None

    def assign(self, train: Examples, test: Examples) -> Assignment:
        _check_tasks(self.num_tasks)
        angles = self._angles() if self.angles is None else list(self.angles)
        _check_tasks(len(angles))
        tasks = [Task(k, f"rotation-{k}", {"angle": angle}) for k, angle in enumerate(angles)]
        height, width, _ = _image_shape(train)
        return _all_examples(tasks, train, test, rotate_pixels(height, width, angles))

    def _angles(self) -> list[float]:
        if self.seed is not None:
            return [
                float(angle)
                for angle in np.random.default_rng(self.seed).uniform(0, 180, self.num_tasks)
            ]
        return [180.0 * k / self.num_tasks for k in range(self.num_tasks)]


PROTOCOLS: Mapping[str, type[Protocol]] = {
    "classes": SplitClasses,
    "i-blurry": IBlurry,
    "column": ByColumn,
    "permuted": Permuted,
    "rotated": Rotated,
}


def find_protocol(given: Protocol | Mapping[str, Any]) -> Protocol:
    """A protocol, or the one that plain data such as {"kind": "permuted", "num_tasks": 5}
    describes.
    """
    if isinstance(given, Protocol):
        return given
    kind = str(given.get("kind"))
    if kind not in PROTOCOLS:
        raise ValueError(f"the protocol's kind is {kind!r}, allowed: {', '.join(PROTOCOLS)}")
    try:
        return PROTOCOLS[kind](**{key: value for key, value in given.items() if key != "kind"})
    except TypeError as error:
        raise ValueError(f"the protocol {kind!r} does not take {dict(given)}: {error}") from None


def check_ratio(name: str, value: float) -> float:
    """`value`, or ValueError unless it is from 0 to 1."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}, allowed: 0 to 1")
    return value


def _all_examples(tasks: Sequence[Task], train: Examples, test: Examples, view: View) -> Assignment:
    """All tasks hold all examples, and number the classes alike; together they tell apart every
    task's own.
    """
    count = len(train.classes)
    within = np.tile(np.arange(count), (len(tasks), 1))
    rows = [[np.arange(len(data))] * len(tasks) for data in (train, test)]
    return Assignment(
        tuple(tasks),
        rows[0],
        rows[1],
        within,
        within + count * np.arange(len(tasks))[:, None],
        view,
    )


def _classes(data: Examples) -> npt.NDArray[np.int64]:
    if data.labels.ndim != 1:
        raise ValueError(
            "the labels are tags, one a token, allowed for a split by classes: one label an example"
        )
    return data.labels


def _find_class(classes: Sequence[str], key: str | int) -> int:
    if isinstance(key, str) and key in classes:
        return list(classes).index(key)
    if isinstance(key, int) and 0 <= key < len(classes):
        return key
    raise ValueError(
        f"unknown class {key!r}: choose a number from 0 to {len(classes) - 1} or one of "
        f"{', '.join(classes)}"
    )


def _check_tasks(count: int) -> None:
    if count < 1:
        raise ValueError(f"num_tasks is {count}, allowed: 1 or more")


def _image_shape(data: Examples) -> tuple[int, int, int]:
    if data.inputs.ndim != 4:
        raise ValueError(
            f"inputs have shape {data.inputs.shape}, allowed for permuted and rotated pixels: "
            "images (N, H, W, C)"
        )
    height, width, channels = data.inputs.shape[1:]
    return height, width, channels


def _distinct(tasks: list[Task]) -> tuple[Task, ...]:
    """Tasks whose names would be the same get their number behind it."""
    names = [task.name for task in tasks]
    return tuple(
        task
        if names.count(task.name) == 1
        else Task(task.id, f"{task.name}-{task.id}", task.params)
        for task in tasks
    )
