"""How a data set becomes tasks: a task's examples, how it shows them, and its classes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from everloop.contract import Task
from everloop.envs.data import Examples
from everloop.envs.views import permute_pixels, rotate_pixels

Indices = npt.NDArray[np.int64]
Table = npt.NDArray[np.int64]
View = Callable[[npt.NDArray[Any], int], npt.NDArray[Any]]


@dataclass(frozen=True)
class Assignment:
    """K tasks made of a data set with C classes.

    Args:
        tasks: The tasks, K of them.
        train: Indices of each task's examples in the train split, K arrays.
        test: The same for the test split.
        within: Each class's number among the classes of one task, (K, C); -1 for a class that the
            task does not have.
        joint: Each class's number among the classes of all tasks together, (K, C), or -1.
        view: `view(inputs, task)` returns the inputs (n, ...) as that task shows them. None shows
            them unchanged.
    """

    tasks: tuple[Task, ...]
    train: Sequence[Indices]
    test: Sequence[Indices]
    within: Table
    joint: Table
    view: View | None = None


class TaskSplit(ABC):
    """A way to make tasks of a data set. Subclass it to write your own."""

    @abstractmethod
    def assign(self, train: Examples, test: Examples) -> Assignment:
        """Return the tasks of this data set.

        Raises:
            ValueError: If the split does not fit the data. The message is one line.
        """


@dataclass(frozen=True)
class SplitClasses(TaskSplit):
    """Each task holds a group of the classes.

    Args:
        classes_per_task: Classes in each group; it must divide the number of classes.
        seed: Seed of a random order of the classes. None keeps their order.
        groups: The classes of each task, in place of equal groups: names, or numbers from 0 in
            the order of the classes. A string that is no name may be a number. A class may be in
            several groups or in none.
    """

    classes_per_task: int = 2
    seed: int | None = None
    groups: Sequence[Sequence[str | int]] | None = None

    def assign(self, train: Examples, test: Examples) -> Assignment:
        groups = self._groups(train.classes)
        used = sorted({c for group in groups for c in group})
        tasks = []
        within = np.full((len(groups), len(train.classes)), -1)
        joint = within.copy()
        for k, group in enumerate(groups):
            names = [train.classes[c] for c in group]
            tasks.append(Task(k, _title(names), {"classes": names}))
            within[k, group] = np.arange(len(group))
            joint[k, group] = np.searchsorted(used, group)
        indices = [
            [np.flatnonzero(np.isin(_classes(data), group)) for group in groups]
            for data in (train, test)
        ]
        return Assignment(_distinct(tasks), indices[0], indices[1], within, joint)

    def _groups(self, classes: Sequence[str]) -> list[list[int]]:
        if self.groups is not None:
            return _named_groups(classes, self.groups)
        size = self.classes_per_task
        count = len(classes)
        if size < 1 or count % size:
            raise ValueError(
                f"classes_per_task is {size}; it must divide the number of classes, {count}"
            )
        order = np.arange(count)
        if self.seed is not None:
            order = np.random.default_rng(self.seed).permutation(count)
        return [group.tolist() for group in order.reshape(-1, size)]


@dataclass(frozen=True)
class IBlurry(TaskSplit):
    """The i-Blurry split: disjoint classes, and blurry ones whose examples are scattered.

    Source: Koh et al. 2022, "Online continual learning on class incremental blurry task
    configuration", section 3.

    Some classes are disjoint: each of them belongs to one task. The others are blurry: a part of
    their training examples is scattered evenly over the other tasks. Test examples stay with the
    task of their class.

    Args:
        num_tasks: Number of tasks, 2 or more; it must divide the number of classes.
        disjoint_ratio: Share of the classes that are disjoint, from 0 to 1.
        blur_ratio: Share of a blurry class's training examples that is scattered, from 0 to 1.
        seed: Seed of all draws.
    """

    num_tasks: int = 5
    disjoint_ratio: float = 0.5
    blur_ratio: float = 0.1
    seed: int = 0

    def assign(self, train: Examples, test: Examples) -> Assignment:
        check_ratio("disjoint_ratio", self.disjoint_ratio)
        check_ratio("blur_ratio", self.blur_ratio)
        count = len(train.classes)
        if self.num_tasks < 2 or count % self.num_tasks:
            raise ValueError(
                f"num_tasks is {self.num_tasks}; it must be 2 or more and divide the number of "
                f"classes, {count}"
            )
        plain = SplitClasses(count // self.num_tasks, self.seed).assign(train, test)
        task = self._scatter(train, np.argmax(plain.within >= 0, axis=0)[_classes(train)])
        # any class may turn up in any task
        numbers = np.tile(np.arange(count), (self.num_tasks, 1))
        indices = [np.flatnonzero(task == k) for k in range(self.num_tasks)]
        return Assignment(plain.tasks, indices, plain.test, numbers, numbers)

    def _scatter(self, train: Examples, home: Indices) -> Indices:
        """Return each training example's task (N,), given the task of its class, `home` (N,)."""
        rng = np.random.default_rng([self.seed, 1])
        count = len(train.classes)
        disjoint = rng.permutation(count)[: round(self.disjoint_ratio * count)]
        task = home.copy()
        for c in np.setdiff1d(np.arange(count), disjoint):
            members = rng.permutation(np.flatnonzero(_classes(train) == c))
            moved = members[: round(self.blur_ratio * len(members))]
            shift = 1 + np.arange(len(moved)) % (self.num_tasks - 1)
            task[moved] = (home[moved] + shift) % self.num_tasks
        return task


@dataclass(frozen=True)
class ByColumn(TaskSplit):
    """Each value of a column is a task: reviews by product, characters by alphabet.

    A class that several tasks have is one class: positive is positive for books and for kitchens.
    Tasks whose classes are all their own number them from 0 each within a task. Tasks and classes
    are those of both splits.

    Args:
        column: Name of the column.
        order: The column's values in the order of the tasks. None means sorted.
    """

    column: str = "domain"
    order: Sequence[str] | None = None

    def assign(self, train: Examples, test: Examples) -> Assignment:
        if not train.columns:
            raise ValueError(
                f"column is {self.column!r}, but the data has no columns; "
                "load it with one, or choose another task split"
            )
        if self.column not in train.columns:
            raise ValueError(f"column is {self.column!r}; choose one of {', '.join(train.columns)}")
        columns = [data.columns[self.column].astype(str) for data in (train, test)]
        order = np.unique(np.concatenate(columns)) if self.order is None else self.order
        values = [str(value) for value in order]
        indices = [[np.flatnonzero(column == value) for value in values] for column in columns]
        occurs = _occurring((train, test), indices)
        within = np.where(occurs, np.cumsum(occurs, axis=1) - 1, -1)
        tasks = []
        for k, value in enumerate(values):
            classes = [train.classes[int(c)] for c in np.flatnonzero(occurs[k])]
            tasks.append(Task(k, value, {self.column: value, "classes": classes}))
        joint = np.where(occurs, np.cumsum(occurs.any(0)) - 1, -1)
        return Assignment(tuple(tasks), indices[0], indices[1], within, joint)


def _occurring(
    splits: Sequence[Examples], indices: Sequence[Sequence[Indices]]
) -> npt.NDArray[np.bool_]:
    """Return which classes each task has, (K, C): all that occur anywhere if tasks share some."""
    occurs = np.zeros((len(indices[0]), len(splits[0].classes)), dtype=np.bool_)
    for data, of_tasks in zip(splits, indices, strict=True):
        for k, own in enumerate(of_tasks):
            labels = data.labels[own]
            occurs[k, np.unique(labels[labels >= 0])] = True
    if (occurs.sum(0) > 1).any():
        occurs[:] = occurs.any(0)
    return occurs


@dataclass(frozen=True)
class Permuted(TaskSplit):
    """Each task shows all images with their pixels in another fixed order; task 0 unchanged.

    Source: Goodfellow et al. 2013.

    Args:
        num_tasks: Number of tasks, 1 or more.
        seed: Seed of the orders and of the draws.
        examples_per_task: Number of training examples of each task, drawn at random without
            replacement. None means all of them.
        same_examples: Draw the examples once for all tasks; otherwise anew for each task.
    """

    num_tasks: int = 10
    seed: int = 0
    examples_per_task: int | None = None
    same_examples: bool = False

    def assign(self, train: Examples, test: Examples) -> Assignment:
        _check_tasks(self.num_tasks)
        pixels = int(np.prod(_image_shape(train)[:2]))
        orders = [np.arange(pixels)]
        tasks = [Task(0, "permutation-0", {"seed": None})]
        for k in range(1, self.num_tasks):
            orders.append(np.random.default_rng([self.seed, k]).permutation(pixels))
            tasks.append(Task(k, f"permutation-{k}", {"seed": [self.seed, k]}))
        every = _all_examples(tasks, train, test, permute_pixels(orders))
        if self.examples_per_task is None:
            return every
        return replace(every, train=[self._draw(k, len(train)) for k in range(self.num_tasks)])

    def _draw(self, task: int, count: int) -> Indices:
        """Return the indices of the task's examples among `count`, in ascending order."""
        size = self.examples_per_task
        assert size is not None
        if not 1 <= size <= count:
            raise ValueError(f"examples_per_task is {size}; it must be 1 to {count}")
        rng = np.random.default_rng([self.seed, 0 if self.same_examples else task, 1])
        return np.sort(rng.choice(count, size, replace=False))


@dataclass(frozen=True)
class Rotated(TaskSplit):
    """Each task shows all images rotated by another angle.

    Source: Lopez-Paz & Ranzato 2017, section 5.1.

    Args:
        num_tasks: Number of tasks, 1 or more; not used if `angles` are given.
        angles: Angle of each task, in degrees counter-clockwise. None means `num_tasks` angles
            from 0 in equal steps below 180.
        seed: Draw the angles uniformly from 0 to 180 instead (Buzzega et al. 2020, section 4.1).
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
        if self.seed is None:
            return [180.0 * k / self.num_tasks for k in range(self.num_tasks)]
        drawn = np.random.default_rng(self.seed).uniform(0, 180, self.num_tasks)
        return [float(angle) for angle in drawn]


TASK_SPLITS: Mapping[str, type[TaskSplit]] = {
    "classes": SplitClasses,
    "i-blurry": IBlurry,
    "column": ByColumn,
    "permuted": Permuted,
    "rotated": Rotated,
}


def find_task_split(given: TaskSplit | Mapping[str, Any]) -> TaskSplit:
    """Return the task split, or build it from plain data: {"kind": "permuted", "num_tasks": 5}.

    Raises:
        ValueError: If the kind or a parameter is unknown.
    """
    if isinstance(given, TaskSplit):
        return given
    kind = str(given.get("kind"))
    if kind not in TASK_SPLITS:
        raise ValueError(
            f"the task split's kind is {kind!r}; choose one of {', '.join(TASK_SPLITS)}"
        )
    try:
        return TASK_SPLITS[kind](**{key: value for key, value in given.items() if key != "kind"})
    except TypeError as error:
        raise ValueError(f"the task split {kind!r} does not take {dict(given)}: {error}") from None


def check_ratio(name: str, value: float) -> float:
    """Return `value`, or raise ValueError unless it is from 0 to 1."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}; it must be from 0 to 1")
    return value


def _all_examples(tasks: Sequence[Task], train: Examples, test: Examples, view: View) -> Assignment:
    """Give all examples to every task; all tasks together tell apart every task's classes."""
    count = len(train.classes)
    within = np.tile(np.arange(count), (len(tasks), 1))
    joint = within + count * np.arange(len(tasks))[:, None]
    indices = [[np.arange(len(data))] * len(tasks) for data in (train, test)]
    return Assignment(tuple(tasks), indices[0], indices[1], within, joint, view)


def _classes(data: Examples) -> npt.NDArray[np.int64]:
    """Return the class of each example, (N,)."""
    if data.labels.ndim != 1:
        raise ValueError(
            "the labels are tags, one per token; a split by classes needs one label per example"
        )
    return data.labels


def _named_groups(classes: Sequence[str], groups: Sequence[Sequence[str | int]]) -> list[list[int]]:
    """Return the groups as numbers of classes."""
    if not groups:
        raise ValueError("groups is empty; give at least one group of classes")
    found = [[_find_class(classes, key) for key in group] for group in groups]
    for k, group in enumerate(found):
        if not group:
            raise ValueError(f"group {k} of groups is empty; give it at least one class")
        for c in group:
            if group.count(c) > 1:
                raise ValueError(
                    f"group {k} of groups holds class {classes[c]!r} twice; name it once"
                )
    return found


def _find_class(classes: Sequence[str], key: str | int) -> int:
    if isinstance(key, str) and key in classes:
        return list(classes).index(key)
    if isinstance(key, str) and key.isdecimal() and int(key) < len(classes):
        return int(key)
    if isinstance(key, int) and 0 <= key < len(classes):
        return key
    raise ValueError(
        f"unknown class {key!r}: choose a number from 0 to {len(classes) - 1} or one of "
        f"{', '.join(classes)}"
    )


def _check_tasks(count: int) -> None:
    if count < 1:
        raise ValueError(f"num_tasks is {count}; it must be 1 or more")


def _image_shape(data: Examples) -> tuple[int, int, int]:
    if data.inputs.ndim != 4:
        raise ValueError(
            f"inputs have shape {data.inputs.shape}; permuted and rotated pixels need images "
            "(N, H, W, C)"
        )
    height, width, channels = data.inputs.shape[1:]
    return height, width, channels


def _title(names: Sequence[str]) -> str:
    return "-".join(names) if len(names) <= 4 else f"{names[0]}-to-{names[-1]}"


def _distinct(tasks: Sequence[Task]) -> tuple[Task, ...]:
    """Append the id to the names that several tasks have."""
    names = [task.name for task in tasks]
    return tuple(
        task
        if names.count(task.name) == 1
        else Task(task.id, f"{task.name}-{task.id}", task.params)
        for task in tasks
    )
