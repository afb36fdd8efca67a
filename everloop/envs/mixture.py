"""The order in which a stream presents a task's examples, and what is mixed in with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from everloop.envs.splits import Indices, check_ratio

Presentations = npt.NDArray[np.int64]
"""n presentations of examples in their order, (FIELDS, n). The constants below name the rows."""
INDEX = 0  # the example's position in its split
ORIGIN = 1  # the id of the task that the example belongs to
OOD = 2  # 0 for an unaltered example, k for one changed by the k-th alteration
EPOCH = 3  # the pass over the task in which the example is presented, from 0
KEY = 4  # the seed of the alteration
LABEL = 5  # the label, which the stream fills in if there is one label per example
FIELDS = 6

Times = npt.NDArray[np.float64]
"""When in the pass each presentation comes, (n,), from 0 to 1."""
Weights = npt.NDArray[np.float64]
Part = tuple[Presentations, Times]


@dataclass(frozen=True)
class Mixture:
    """What a stream presents besides the current task's own examples.

    The first task has no past task and the last one no next task; the corresponding shares are
    0 there. A task may return: `order` names each of its visits. The passes 0 to `passes` - 1 over
    its examples belong to its first visit, the following ones to the next, and all that remain to
    its last. The next and the past tasks of a pass are those around its visit.

    Args:
        blur_ratio: Share of all presentations that come from the next task, ahead of time.
        other_task_ratio: Share that comes from past tasks and interferes with the current one.
        ood_ratio: Share that is out of distribution: noise, corruptions or other data.
        gradual: Share of a visit, from 0 to 1, during which a task blends into its neighbours.
            The next task's examples rise from none to every second one at the boundary; the
            previous task's fall from there to none.
        passes: Number of passes over its examples in one visit to a task. It has an effect with
            `gradual`, and where a task returns.
        ood: Names of the alterations that make an example out of distribution. One of them is
            drawn for each such example. None means all available alterations.
        order: Task ids in the order of training, which defines the next and the past tasks. An id
            may occur several times. None means the order of the ids.

    Raises:
        ValueError: If a ratio is outside 0 to 1, or if nothing remains for the task itself.
    """

    blur_ratio: float = 0.0
    other_task_ratio: float = 0.0
    ood_ratio: float = 0.0
    gradual: float = 0.0
    passes: int = 1
    ood: Sequence[str] | None = None
    order: Sequence[int] | None = None

    def __post_init__(self) -> None:
        for name in ("blur_ratio", "other_task_ratio", "ood_ratio", "gradual"):
            check_ratio(name, getattr(self, name))
        total = self.blur_ratio + self.other_task_ratio + self.ood_ratio
        if total >= 1:
            raise ValueError(
                f"blur_ratio + other_task_ratio + ood_ratio is {total:g}; it must be less than 1"
            )
        if self.passes < 1:
            raise ValueError(f"passes is {self.passes}; it must be 1 or more")

    def draw_pass(
        self,
        seed: int,
        indices: Sequence[Indices],
        tasks: Sequence[int],
        epoch: int,
        alterations: int,
    ) -> Presentations:
        """Draw one pass over `tasks`: each of their examples once, and everything mixed in.

        The result depends on the arguments alone. Examples of several tasks are shuffled together.

        Args:
            seed: Seed of the stream.
            indices: Positions of each task's examples in the split, one array per task.
            tasks: Ids of the tasks, at least one.
            epoch: Number of the pass, from 0.
            alterations: Number of alterations to draw from for out-of-distribution examples.

        Returns:
            The presentations, (FIELDS, n), in their order. LABEL is 0.
        """
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *tasks, epoch])))
        own, origin = _pool(indices, tasks)
        near = self._neighbours(len(indices), tasks, epoch)
        times = _evenly(len(own))
        shuffled = rng.permutation(len(own))
        blur, other, ood = self._counts(len(own), near)
        parts = [_part(own[shuffled], origin[shuffled], times)]
        parts += _leaks(rng, indices, near.following, blur)
        parts += _leaks(rng, indices, near.past, other)
        for neighbour, weights in self._blends(len(own), near, epoch):
            drawn = _leaks(rng, indices, neighbour, _total(weights))
            parts += [(part, times[_places(rng, weights)]) for part, _ in drawn]
        if ood:
            parts.append(_out_of_distribution(rng, own, origin, ood, alterations))
        presentations = np.concatenate([part for part, _ in parts], axis=1)
        presentations[EPOCH] = epoch
        by_time = np.argsort(np.concatenate([times for _, times in parts]), kind="stable")
        return np.ascontiguousarray(presentations[:, by_time])

    def pass_length(self, sizes: Sequence[int], tasks: Sequence[int], epoch: int) -> int:
        """Return the number of presentations in a pass, without drawing it.

        Args:
            sizes: Number of each task's examples in the split.
            tasks: As for `draw_pass`.
            epoch: As for `draw_pass`.
        """
        own = sum(sizes[task] for task in tasks)
        near = self._neighbours(len(sizes), tasks, epoch)
        blends = self._blends(own, near, epoch)
        return own + sum(self._counts(own, near)) + sum(_total(weights) for _, weights in blends)

    def _neighbours(self, count: int, tasks: Sequence[int], epoch: int) -> _Neighbours:
        """Return the tasks around those of a pass; none if one of these has no place."""
        order = list(range(count) if self.order is None else self.order)
        if not set(tasks) <= set(order):
            return _Neighbours([], [], [])
        places = [i for i, task in enumerate(order) if task in tasks]
        if len(tasks) == 1:
            places = [places[min(epoch // self.passes, len(places) - 1)]]
        first, last = places[0], places[-1]
        previous, following = order[max(first - 1, 0) : first], order[last + 1 : last + 2]
        return _Neighbours(
            [task for task in dict.fromkeys(order[:first]) if task not in tasks],
            [task for task in previous if task not in tasks],
            [task for task in following if task not in tasks],
        )

    def _counts(self, own: int, near: _Neighbours) -> tuple[int, int, int]:
        """Return how many examples come from the next task, from past ones, and are altered."""
        blur = self.blur_ratio if near.following else 0.0
        other = self.other_task_ratio if near.past else 0.0
        total = own / (1.0 - blur - other - self.ood_ratio)
        return round(blur * total), round(other * total), round(self.ood_ratio * total)

    def _blends(
        self, own: int, near: _Neighbours, epoch: int
    ) -> list[tuple[Sequence[int], Weights]]:
        """Return each neighbouring task, and how many of its examples follow each own one, (n,).

        Their share p is linear in the visit's time, so p / (1 - p) of them follow an own example.
        """
        if not self.gradual:
            return []
        visit = (epoch % self.passes + _evenly(own)) / self.passes
        blends = []
        for neighbour, distance in ((near.following, 1 - visit), (near.previous, visit)):
            p = 0.5 * np.clip(1 - distance / (self.gradual / 2), 0, 1)
            if neighbour:
                blends.append((neighbour, p / (1 - p)))
        return blends


@dataclass(frozen=True)
class _Neighbours:
    """The tasks around a visit: all past ones, the previous one and the next one, if any."""

    past: Sequence[int]
    previous: Sequence[int]
    following: Sequence[int]


PRESETS: Mapping[str, Mapping[str, float]] = {
    "easy": {"blur_ratio": 0.0, "other_task_ratio": 0.0, "ood_ratio": 0.0},
    "moderate": {"blur_ratio": 0.1, "other_task_ratio": 0.05, "ood_ratio": 0.05},
    "hard": {"blur_ratio": 0.2, "other_task_ratio": 0.1, "ood_ratio": 0.1},
}


def _evenly(count: int) -> Times:
    """Return the times of a pass's own examples, (count,)."""
    return (np.arange(count) + 0.5) / count


def _total(weights: Weights) -> int:
    return round(float(weights.sum()))


def _places(rng: np.random.Generator, weights: Weights) -> Indices:
    """Draw `_total(weights)` places from 0 to n - 1 at even distances of weight, for n weights."""
    count = _total(weights)
    points = (np.arange(count) + rng.random()) * (weights.sum() / max(count, 1))
    places: Indices = np.searchsorted(np.cumsum(weights), points)
    return np.minimum(places, len(weights) - 1)


def _pool(indices: Sequence[Indices], tasks: Sequence[int]) -> tuple[Indices, Indices]:
    """Return the positions of all examples of `tasks`, (n,), and the task of each, (n,)."""
    origin = np.repeat(tasks, [len(indices[task]) for task in tasks])
    return np.concatenate([indices[task] for task in tasks]), origin


def _draw(rng: np.random.Generator, total: int, count: int) -> Indices:
    """Draw `count` numbers from 0 to `total` - 1, each as often as any other, to within one."""
    return np.resize(rng.permutation(total), count)


def _leaks(
    rng: np.random.Generator, indices: Sequence[Indices], tasks: Sequence[int], count: int
) -> list[Part]:
    """Draw `count` examples of `tasks` at random times."""
    if not tasks or not count:
        return []
    index, origin = _pool(indices, tasks)
    drawn = _draw(rng, len(origin), count)
    return [_part(index[drawn], origin[drawn], rng.random(count))]


def _out_of_distribution(
    rng: np.random.Generator, own: Indices, origin: Indices, count: int, alterations: int
) -> Part:
    """Draw `count` of the tasks' own examples at random times, each with a random alteration."""
    ood = rng.integers(1, alterations + 1, count)
    drawn = _draw(rng, len(own), count)
    part, times = _part(own[drawn], origin[drawn], rng.random(count))
    part[OOD] = ood
    part[KEY] = rng.integers(0, 2**62, count)
    return part, times


def _part(index: Indices, origin: Indices, times: Times) -> Part:
    presentations = np.zeros((FIELDS, len(index)), dtype=np.int64)
    presentations[INDEX] = index
    presentations[ORIGIN] = origin
    return presentations, times


def find_mixture(given: Mixture | Mapping[str, Any]) -> Mixture:
    """Return the mixture, or build it from plain data such as {"blur_ratio": 0.1}.

    Raises:
        ValueError: If the data has an unknown name.
    """
    if isinstance(given, Mixture):
        return given
    try:
        return Mixture(**given)
    except TypeError as error:
        raise ValueError(f"the mixture does not take {dict(given)}: {error}") from None
