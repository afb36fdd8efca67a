"""The previous action and reward as a modality: what an agent does feeds back into what it sees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from everloop.contract import FEEDBACK, Metric, Observation, Task
from everloop.envs.task import reward_range_of
from everloop.envs.wrapper import TaskVectorWrapper


def feedback_space(
    action_space: spaces.Space[Any], reward_range: tuple[float, float]
) -> spaces.Box:
    """Return the space of the feedback, a Box (action size + 1,).

    It holds the previous action, each choice one-hot, then the reward. At an episode's start all
    entries are 0.

    Args:
        action_space: Box, MultiBinary, Discrete or MultiDiscrete.
        reward_range: Lowest and highest reward of a step.

    Raises:
        ValueError: If the action space is of another kind.
    """
    if isinstance(action_space, spaces.Box):
        low, high = action_space.low.reshape(-1), action_space.high.reshape(-1)
    else:
        size = int(_options(action_space).sum())
        low, high = np.zeros(size), np.ones(size)
    low = np.minimum(np.append(low, reward_range[0]), 0.0)
    high = np.maximum(np.append(high, reward_range[1]), 0.0)
    return spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)


def _options(action_space: spaces.Space[Any]) -> npt.NDArray[np.int64]:
    """Return the numbers that each part of an action takes: one-hot vectors, or 1 for a bit."""
    if isinstance(action_space, spaces.Discrete):
        return np.array([action_space.n])
    if isinstance(action_space, spaces.MultiDiscrete):
        return np.asarray(action_space.nvec, dtype=np.int64).reshape(-1)
    if isinstance(action_space, spaces.MultiBinary):
        return np.ones(int(np.prod(action_space.shape)), dtype=np.int64)
    raise ValueError(
        f"the action space is {action_space}; feedback needs a Box, Discrete, MultiDiscrete or "
        "MultiBinary"
    )


def _encode(
    actions: npt.NDArray[Any],
    rewards: npt.NDArray[Any],
    action_space: spaces.Space[Any],
    box: spaces.Box,
) -> npt.NDArray[np.float32]:
    """Return the feedback, (B, action size + 1), clipped to `box` as worlds clip actions."""
    if isinstance(action_space, spaces.Box):
        actions = np.clip(actions, action_space.low, action_space.high)
    elif not isinstance(action_space, spaces.MultiBinary):
        sizes, begin = _options(action_space), np.asarray(action_space.start).reshape(-1)  # type: ignore[attr-defined]
        chosen = np.asarray(actions, dtype=np.int64).reshape(len(rewards), -1) - begin
        chosen += np.cumsum(sizes) - sizes  # where the one-hot vector of each choice begins
        actions = np.zeros((len(rewards), int(sizes.sum())), dtype=np.float32)
        np.put_along_axis(actions, chosen, 1.0, axis=1)
    flat = np.empty((len(rewards), box.shape[0]), dtype=np.float32)
    flat[:, :-1] = np.asarray(actions).reshape(len(rewards), -1)
    flat[:, -1] = rewards
    return np.clip(flat, box.low, box.high, out=flat)


def _extended(space: spaces.Space[Any], box: spaces.Box) -> spaces.Dict:
    if not isinstance(space, spaces.Dict) or FEEDBACK in space.spaces:
        raise ValueError(
            f"the observation space is {space}; feedback needs a Dict without {FEEDBACK!r}"
        )
    return spaces.Dict({**space.spaces, FEEDBACK: box})


class Feedback(gym.Wrapper[Observation, Any, Observation, Any], gym.utils.RecordConstructorArgs):
    """A wrapper that adds the modality `"feedback"` to a single world.

    Args:
        env: The world, with a Dict of observations and numbers or choices as actions.

    Raises:
        ValueError: If its spaces are of another kind.
    """

    def __init__(self, env: gym.Env[Observation, Any]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)  # for the spec to re-create it
        gym.Wrapper.__init__(self, env)
        self.tasks: tuple[Task, ...] = env.get_wrapper_attr("tasks")
        self.reward_range = reward_range_of(env)
        self._box = feedback_space(env.action_space, self.reward_range)
        self.observation_space: spaces.Space[Any] = _extended(env.observation_space, self._box)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        return {**observation, FEEDBACK: np.zeros(self._box.shape, np.float32)}, info

    def step(self, action: Any) -> tuple[Observation, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        actions = np.asarray(action)[None]
        feedback = _encode(actions, np.asarray([reward]), self.action_space, self._box)[0]
        return {**observation, FEEDBACK: feedback}, reward, terminated, truncated, info

    def reference(self, task: int | str) -> tuple[float, float]:
        known: tuple[float, float] = self.env.get_wrapper_attr("reference")(task)
        return known

    def metric(self, task: int | str) -> Metric:
        metric: Metric = self.env.get_wrapper_attr("metric")(task)
        return metric

    def examples(self, task: int | str) -> int | None:
        count: int | None = self.env.get_wrapper_attr("examples")(task)
        return count

    def state_dict(self) -> dict[str, Any] | None:
        """Return the world's state: the next observation depends on nothing else."""
        state: dict[str, Any] | None = self.env.get_wrapper_attr("state_dict")()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.env.get_wrapper_attr("load_state_dict")(state)


class VectorFeedback(TaskVectorWrapper):
    """A wrapper that adds the modality `"feedback"` to a vector of worlds.

    Args:
        env: The worlds, under SAME_STEP or DISABLED autoreset, with a Dict of observations and
            numbers or choices as actions.

    Raises:
        ValueError: If the autoreset mode or a space is of another kind.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        mode = env.metadata.get("autoreset_mode")
        if mode not in (AutoresetMode.SAME_STEP, AutoresetMode.DISABLED):
            raise ValueError(f"autoreset_mode is {mode}; feedback needs SameStep or Disabled")
        super().__init__(env)
        self._box = feedback_space(env.single_action_space, self.reward_range)
        self.single_observation_space = _extended(env.single_observation_space, self._box)
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)
        self._feedback = np.zeros((env.num_envs, *self._box.shape), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        mask = (options or {}).get("reset_mask")
        observation, info = self.env.reset(seed=seed, options=options)
        self._feedback[slice(None) if mask is None else mask] = 0.0
        return {**observation, FEEDBACK: self._feedback.copy()}, info

    def step(
        self, actions: Any
    ) -> tuple[Observation, npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], dict[str, Any]]:
        observation, rewards, terminated, truncated, info = self.env.step(actions)
        feedback = _encode(actions, rewards, self.single_action_space, self._box)
        if "final_obs" in info:
            for i in np.flatnonzero(info["_final_obs"]):
                info["final_obs"][i] = {**info["final_obs"][i], FEEDBACK: feedback[i].copy()}
                feedback[i] = 0.0
        self._feedback = feedback
        return {**observation, FEEDBACK: feedback.copy()}, rewards, terminated, truncated, info

    def state_dict(self) -> dict[str, Any] | None:
        state = super().state_dict()
        return None if state is None else {"world": state, "felt": self._feedback.copy()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state["world"])
        self._feedback = state["felt"].copy()
