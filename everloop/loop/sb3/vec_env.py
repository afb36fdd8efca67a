"""A thin adapter from Gymnasium's vector environments to those of Stable-Baselines3."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.vec_env import VecEnv

from everloop.contract import Observation, World
from everloop.loop.actions import ActionUnits
from everloop.loop.state import packed, restore
from everloop.loop.tally import Tally
from everloop.loop.world import check_finite, check_tasks, reset_to_phase

STATE = ("tasks", "played", "steps", "_obs", "_returns", "_lengths", "_seeds")
"""Attributes to save."""


def pictures(space: spaces.Space[Any]) -> frozenset[str]:
    """Return the names of the modalities with three axes, (H, W, C)."""
    if not isinstance(space, spaces.Dict):
        return frozenset()
    return frozenset(name for name, part in space.items() if len(part.shape or ()) == 3)


class WorldVecEnv(VecEnv):
    """A world as a `VecEnv` of Stable-Baselines3.

    Observations pass through unchanged, except that images get one more axis, (1, H, W, C). SB3
    would otherwise recognize them by their three axes, and transpose them. Actions are in the
    network's units (`ActionUnits`), which SB3 supports for any world. The return and the length of
    each ended episode are in `infos[i]["episode"]`, as with SB3's Monitor.

    Attributes:
        tasks: IDs of the tasks. From the next reset on the world's copies are divided among them.
        played: The ID of each copy's task, int64 (B,).
        steps: World steps so far.
        reset_seed: Seed of the run, for resets of a world that can't give its state.
        taken: If it is a list, each step appends the observations and the actions to it.

    Args:
        world: A world with the autoreset mode SAME_STEP.
        tally: Where the return of each ended episode is added; None for a tally of its own.

    Raises:
        ValueError: If the world has another autoreset mode; or at a reset or step, if a copy plays
            another task than the one asked for.
        NotFiniteError: At a reset or step, if an observation or a reward is not finite.
    """

    def __init__(self, world: World, tally: Tally | None = None) -> None:
        mode = getattr(world, "metadata", {}).get("autoreset_mode")
        if mode is not AutoresetMode.SAME_STEP:
            raise ValueError(
                f"the world's autoreset mode is {mode}; make it with {AutoresetMode.SAME_STEP}"
            )
        self.world, self.tally = world, tally or Tally()
        self.tasks: Sequence[int] = [0]
        self.played: npt.NDArray[np.int64] = np.zeros(world.num_envs, dtype=np.int64)
        self.steps = self.reset_seed = 0
        self._obs: Observation = {}
        self.taken: list[tuple[Observation, npt.NDArray[Any]]] | None = None
        self._pictures = pictures(world.single_observation_space)
        space = self._space_with_axis(world.single_observation_space)
        self._units = ActionUnits(world.single_action_space)
        super().__init__(world.num_envs, space, self._units.network)
        self._returns = np.zeros(world.num_envs)
        self._lengths = np.zeros(world.num_envs, dtype=np.int64)

    def reset(self) -> Observation:
        place = self.reset_seed, self.steps
        obs, self.played = reset_to_phase(self.world, self.tasks, place, self._seeds[0])
        self._reset_seeds()
        self._reset_options()
        self._returns[:] = 0.0
        self._lengths[:] = 0
        check_finite(obs, self.steps)
        self._obs = obs
        return self._with_axis(obs, 1)

    def step_async(self, actions: npt.NDArray[Any]) -> None:
        self._actions = actions
        if self.taken is not None:
            self.taken.append((self._obs, actions))

    def step_wait(
        self,
    ) -> tuple[Observation, npt.NDArray[Any], npt.NDArray[Any], list[dict[str, Any]]]:
        obs, rewards, terminated, truncated, info = self.world.step(
            self._units.to_world(self._actions)
        )
        self.steps += self.num_envs
        check_tasks(self.world, info, self.played)
        check_finite(obs, self.steps, rewards)
        self._returns += rewards
        self._lengths += 1
        done = terminated | truncated
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for i in np.flatnonzero(done):
            last = info["final_obs"][i]
            check_finite(last, self.steps, what="an episode's last observation")
            infos[i]["terminal_observation"] = self._with_axis(last, 0)
            infos[i]["TimeLimit.truncated"] = bool(truncated[i] and not terminated[i])
            infos[i]["episode"] = {"r": float(self._returns[i]), "l": int(self._lengths[i])}
        self.tally.returns += float(self._returns[done].sum())
        self.tally.episodes += int(done.sum())
        self._returns[done] = 0.0
        self._lengths[done] = 0
        self._obs = obs
        return self._with_axis(obs, 1), rewards.astype(np.float32), done, infos

    def _with_axis(self, obs: Observation, axis: int) -> Observation:
        if not self._pictures:
            return obs
        return {
            name: np.expand_dims(x, axis) if name in self._pictures else x
            for name, x in obs.items()
        }

    def _space_with_axis(self, space: spaces.Space[Any]) -> spaces.Space[Any]:
        """Return the observation space with one more axis for images."""
        if not isinstance(space, spaces.Dict) or not self._pictures:
            return space
        parts: dict[str, Any] = dict(space.spaces)
        for name in self._pictures:
            box = parts[name]
            parts[name] = spaces.Box(box.low[None], box.high[None], dtype=box.dtype)
        return spaces.Dict(parts)

    def close(self) -> None:
        self.world.close()

    def state_dict(self) -> dict[str, Any]:
        """Return the tasks, the current observations, and the returns and lengths so far."""
        return packed(self, STATE)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        restore(self, state)

    def _indices(self, indices: int | Iterable[int] | None) -> list[int]:
        if indices is None:
            return list(range(self.num_envs))
        return list(np.atleast_1d(np.asarray(indices)))

    def get_attr(self, attr_name: str, indices: int | Iterable[int] | None = None) -> list[Any]:
        return [getattr(self.world, attr_name) for _ in self._indices(indices)]

    def set_attr(
        self, attr_name: str, value: Any, indices: int | Iterable[int] | None = None
    ) -> None:
        setattr(self.world, attr_name, value)

    def env_method(
        self,
        method_name: str,
        *args: Any,
        indices: int | Iterable[int] | None = None,
        **kwargs: Any,
    ) -> list[Any]:
        return [getattr(self.world, method_name)(*args, **kwargs) for _ in self._indices(indices)]

    def env_is_wrapped(
        self, wrapper_class: Any, indices: int | Iterable[int] | None = None
    ) -> list[bool]:
        return [False for _ in self._indices(indices)]
