"""A wrapper of a vector world that is itself a world."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.vector import VectorEnv, VectorWrapper

from everloop.contract import Metric, Observation, Task


class TaskVectorWrapper(VectorWrapper[Observation, Any, Observation, Any, npt.NDArray[Any]]):
    """A vector wrapper that forwards everything that makes the wrapped environment a world.

    Derive your own wrappers of vector worlds from it, because Gymnasium's `VectorWrapper` forwards
    the standard attributes of an environment only. A wrapper with a state of its own extends
    `state_dict` and `load_state_dict`.
    """

    env: Any

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        super().__init__(env)
        self.tasks: tuple[Task, ...] = self.env.tasks
        self.reward_range: tuple[float, float] = self.env.reward_range

    def reference(self, task: int | str) -> tuple[float, float]:
        known: tuple[float, float] = self.env.reference(task)
        return known

    def metric(self, task: int | str) -> Metric:
        metric: Metric = self.env.metric(task)
        return metric

    def examples(self, task: int | str | Sequence[int]) -> int | None:
        count: int | None = self.env.examples(task)
        return count

    def show(
        self, task: int, rows: npt.NDArray[np.int64]
    ) -> tuple[Observation, npt.NDArray[np.int64]] | None:
        """Return None: the wrapper may show examples differently from the wrapped world."""
        return None

    def state_dict(self) -> dict[str, Any] | None:
        state: dict[str, Any] | None = self.env.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.env.load_state_dict(state)
