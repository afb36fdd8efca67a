"""A wrapper of a vector world that is itself a world."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.vector import VectorEnv, VectorWrapper

from everloop.contract import Metric, Observation, Task
from everloop.envs.task import reward_range_of


class TaskVectorWrapper(VectorWrapper[Observation, Any, Observation, Any, npt.NDArray[Any]]):
    """A vector wrapper that forwards everything that makes the wrapped environment a world.

    Derive your own wrappers of vector worlds from it, because Gymnasium's `VectorWrapper` forwards
    the standard attributes of an environment only. A wrapper with a state of its own extends
    `state_dict` and `load_state_dict`. Around a wrapper of Gymnasium's it makes a world again:
    `TaskVectorWrapper(RecordEpisodeStatistics(world))`. Such a world can't return its state,
    because the wrapper may have one.
    """

    env: Any

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        super().__init__(env)
        self._world: Any = env
        while not hasattr(self._world, "tasks") and isinstance(self._world, VectorWrapper):
            self._world = self._world.env
        self.tasks: tuple[Task, ...] = self._world.tasks
        self.reward_range = reward_range_of(self._world)

    def reference(self, task: int | str) -> tuple[float, float]:
        known: tuple[float, float] = self._world.reference(task)
        return known

    def metric(self, task: int | str) -> Metric:
        metric: Metric = self._world.metric(task)
        return metric

    def examples(self, task: int | str | Sequence[int]) -> int | None:
        count: int | None = self._world.examples(task)
        return count

    def show(
        self, task: int, rows: npt.NDArray[np.int64]
    ) -> tuple[Observation, npt.NDArray[np.int64]] | None:
        """Return None: the wrapper may show examples differently from the wrapped world."""
        return None

    def state_dict(self) -> dict[str, Any] | None:
        state: dict[str, Any] | None = None
        if self._world is self.env:
            state = self.env.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.env.load_state_dict(state)
