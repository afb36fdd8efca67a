"""In which order a task's examples come, and what else gets among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from everloop.envs.protocols import Rows, check_ratio

Plan = npt.NDArray[np.int64]
ROW, ORIGIN, OOD, EPOCH, KEY, LABEL = range(6)
"""The rows of a plan: which example, of which task, altered how (0: not), in which pass, with which
random key, and its label, which whoever knows the labels fills in.
"""
Part = tuple[
    Plan, npt.NDArray[np.float64]
]  # examples, and when in the pass each comes, from 0 to 1


@dataclass(frozen=True)
class Schedule:
    """What a stream serves beside the task at hand, as shares of all examples served.

    blur_ratio: examples of the next task, leaking in before its time.
    other_task_ratio: examples of past tasks, interfering.
    ood_ratio: examples out of the distribution: noise, corruptions, other data.
    gradual: share of a visit in which a task passes into its neighbours: the next task's examples
        rise from none to every second one at the boundary, and the last task's fall from there to
        none.
    passes: how many passes over its examples a visit to a task lasts; only `gradual` asks.
    ood: names of the ways to be out of distribution, one drawn for each such example; all that
        there are if none.
    order: task ids in the order of training, which says what is next and what is past; by their
    numbers if none. The first task has no past and the last one no next: those shares are 0 there.
    Raises ValueError for ratios outside 0 to 1, or that leave nothing for the task itself.
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
                f"blur_ratio + other_task_ratio + ood_ratio is {total:g}, allowed: less than 1"
            )
        if self.passes < 1:
            raise ValueError(f"passes is {self.passes}, allowed: 1 or more")

    def plan(self, seed: int, rows: Sequence[Rows], task: int, epoch: int, kinds: int) -> Plan:
        """(6, n): one pass over `task`, every one of its rows once, with all that gets among them.

        A function of its arguments alone: whoever asks, and whenever, gets the same. rows: of each
            task.
        kinds: how many ways there are to be out of distribution.
        """
        order = range(len(rows)) if self.order is None else self.order
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, task, epoch])))
        own, past, coming = rows[task], _before(order, task), _after(order, task)
        blur = self.blur_ratio if coming else 0.0
        other = self.other_task_ratio if past else 0.0
        unit = len(own) / (1.0 - blur - other - self.ood_ratio)
        when = (np.arange(len(own)) + 0.5) / len(
            own
        )  # the task's own examples are evenly spread over the pass
        parts = [_part(rng.permutation(own), task, when)]
        parts += _leaks(rng, rows, coming[:1], round(blur * unit)) + _leaks(
            rng, rows, past, round(other * unit)
        )
        parts += self._drift(rng, rows, coming[:1], past[-1:], when, epoch)
        if out := round(self.ood_ratio * unit):
            kind = rng.integers(1, kinds + 1, out)
            parts.append(
                _part(
                    _draw(rng, own, out), task, rng.random(out), kind, rng.integers(0, 2**62, out)
                )
            )
        plan, times = (np.concatenate(column, axis=-1) for column in zip(*parts, strict=True))
        plan[EPOCH] = epoch
        return np.ascontiguousarray(plan[:, np.argsort(times, kind="stable")])

    def _drift(
        self,
        rng: np.random.Generator,
        rows: Sequence[Rows],
        coming: Sequence[int],
        past: Sequence[int],
        when: npt.NDArray[np.float64],
        epoch: int,
    ) -> list[Part]:
        """After an example at place v of the visit a neighbour's may follow, so that its share p is
        linear in v.
        """
        parts: list[Part] = []
        if self.gradual:
            v = (epoch % self.passes + when) / self.passes
            for neighbours, distance in ((coming, 1 - v), (past, v)):
                p = 0.5 * np.clip(1 - distance / (self.gradual / 2), 0, 1)
                follows = when[rng.random(len(when)) < p / (1 - p)]
                parts += [
                    (plan, follows) for plan, _ in _leaks(rng, rows, neighbours, len(follows))
                ]
        return parts


PRESETS: Mapping[str, Mapping[str, float]] = {
    "easy": {"blur_ratio": 0.0, "other_task_ratio": 0.0, "ood_ratio": 0.0},
    "moderate": {"blur_ratio": 0.1, "other_task_ratio": 0.05, "ood_ratio": 0.05},
    "hard": {"blur_ratio": 0.2, "other_task_ratio": 0.1, "ood_ratio": 0.1},
}


def _before(order: Sequence[int], task: int) -> Sequence[int]:
    return order[: order.index(task)] if task in order else []


def _after(order: Sequence[int], task: int) -> Sequence[int]:
    return order[order.index(task) + 1 :] if task in order else []


def _draw(rng: np.random.Generator, rows: Rows, count: int) -> Rows:
    """`count` of `rows`, each as often as the others, but for one."""
    return np.resize(rng.permutation(rows), count)


def _leaks(
    rng: np.random.Generator, rows: Sequence[Rows], tasks: Sequence[int], count: int
) -> list[Part]:
    """`count` examples of `tasks`, at random times."""
    if not tasks or not count:
        return []
    origin = np.repeat(tasks, [len(rows[task]) for task in tasks])
    picked = _draw(rng, np.arange(len(origin)), count)
    return [
        _part(
            np.concatenate([rows[task] for task in tasks])[picked],
            origin[picked],
            rng.random(count),
        )
    ]


def _part(
    row: Rows,
    origin: int | Rows,
    when: npt.NDArray[np.float64],
    ood: int | Rows = 0,
    key: int | Rows = 0,
) -> Part:
    plan = np.zeros((6, len(row)), dtype=np.int64)
    plan[ROW], plan[ORIGIN], plan[OOD], plan[KEY] = row, origin, ood, key
    return plan, when


def find_schedule(given: Schedule | Mapping[str, Any]) -> Schedule:
    """A schedule, or the one that plain data such as {"blur_ratio": 0.1} describes."""
    if isinstance(given, Schedule):
        return given
    try:
        return Schedule(**given)
    except TypeError as error:
        raise ValueError(f"the schedule does not take {dict(given)}: {error}") from None
