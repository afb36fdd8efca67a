"""A minimal world as a user would write it: walk to the number that the task names."""

from typing import Any

import numpy as np
from gymnasium import spaces

from everloop.contract import Observation
from everloop.envs import Task, TaskEnv

LENGTH = 5


class Walk(TaskEnv):
    tasks = tuple(Task(k, f"to-{goal}", {"goal": goal}) for k, goal in enumerate((-3, 3, 0)))
    reward_range = (-40.0, 0.0)
    metadata = {"render_modes": []}  # noqa: RUF012
    observation_space = spaces.Dict({"place": spaces.Box(-100.0, 100.0, (1,), np.float32)})
    action_space = spaces.Discrete(3, start=-1)
    place, elapsed = 0.0, 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        self.place, self.elapsed = float(self.np_random.normal()), 0
        return {"place": np.array([self.place], np.float32)}, {"task": self.task.id}

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        self.place, self.elapsed = self.place + int(action), self.elapsed + 1
        reward = -abs(self.place - self.task.params["goal"])
        return (
            {"place": np.array([self.place], np.float32)},
            reward,
            False,
            self.elapsed == LENGTH,
            {"task": self.task.id},
        )
