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
Part = tuple[Presentations, Times]


@dataclass(frozen=True)
class Mixture:
    """What a stream presents besides the current task's own examples.

    The first task has no past task and the last one no next task; the corresponding shares are
    0 there.

    Args:
        blur_ratio: Share of all presentations that come from the next task, ahead of time.
        other_task_ratio: Share that comes from past tasks and interferes with the current one.
        ood_ratio: Share that is out of distribution: noise, corruptions or other data.
        gradual: Share of a visit, from 0 to 1, during which a task blends into its neighbours.
            The next task's examples rise from none to every second one at the boundary; the
            previous task's fall from there to none.
        passes: Number of passes over its examples in one visit to a task. Only `gradual` uses it.
        ood: Names of the alterations that make an example out of distribution. One of them is
            drawn for each such example. None means all available alterations.
        order: Task ids in the order of training, which defines the next and the past tasks. None
            means the order of the ids.

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
        order = range(len(indices)) if self.order is None else self.order
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *tasks, epoch])))
        own, origin = _pool(indices, tasks)
        past, coming = _before(order, tasks), _after(order, tasks)
        blur = self.blur_ratio if coming else 0.0
        other = self.other_task_ratio if past else 0.0
        total = len(own) / (1.0 - blur - other - self.ood_ratio)
        times = (np.arange(len(own)) + 0.5) / len(own)  # the tasks' own examples, evenly spaced
        shuffled = rng.permutation(len(own))
        parts = [_part(own[shuffled], origin[shuffled], times)]
        parts += _leaks(rng, indices, coming[:1], round(blur * total))
        parts += _leaks(rng, indices, past, round(other * total))
        parts += self._blend(rng, indices, coming[:1], past[-1:], times, epoch)
        if count := round(self.ood_ratio * total):
            parts.append(_out_of_distribution(rng, own, origin, count, alterations))
        presentations = np.concatenate([part for part, _ in parts], axis=1)
        presentations[EPOCH] = epoch
        by_time = np.argsort(np.concatenate([times for _, times in parts]), kind="stable")
        return np.ascontiguousarray(presentations[:, by_time])

    def _blend(
        self,
        rng: np.random.Generator,
        indices: Sequence[Indices],
        coming: Sequence[int],
        past: Sequence[int],
        times: Times,
        epoch: int,
    ) -> list[Part]:
        """Draw the examples of neighbouring tasks; their share p is linear in the visit's time.

        With probability p / (1 - p) one of them follows an example of the task's own.
        """
        parts: list[Part] = []
        if self.gradual:
            visit = (epoch % self.passes + times) / self.passes
            for neighbours, distance in ((coming, 1 - visit), (past, visit)):
                p = 0.5 * np.clip(1 - distance / (self.gradual / 2), 0, 1)
                follows = times[rng.random(len(times)) < p / (1 - p)]
                leaks = _leaks(rng, indices, neighbours, len(follows))
                parts += [(presentations, follows) for presentations, _ in leaks]
        return parts


PRESETS: Mapping[str, Mapping[str, float]] = {
    "easy": {"blur_ratio": 0.0, "other_task_ratio": 0.0, "ood_ratio": 0.0},
    "moderate": {"blur_ratio": 0.1, "other_task_ratio": 0.05, "ood_ratio": 0.05},
    "hard": {"blur_ratio": 0.2, "other_task_ratio": 0.1, "ood_ratio": 0.1},
}


def _before(order: Sequence[int], tasks: Sequence[int]) -> Sequence[int]:
    """Return the tasks that come before all of `tasks`; none if one of these has no place."""
    return order[: min(map(order.index, tasks))] if set(tasks) <= set(order) else []


def _after(order: Sequence[int], tasks: Sequence[int]) -> Sequence[int]:
    """Return the tasks that come after all of `tasks`; none if one of these has no place."""
    return order[max(map(order.index, tasks)) + 1 :] if set(tasks) <= set(order) else []


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
