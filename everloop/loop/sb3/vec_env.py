"""A thin adapter from Gymnasium's vector environments to Stable-Baselines3's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.vec_env import VecEnv

from everloop.contract import Observation, World
from everloop.loop.state import packed, restore
from everloop.loop.world import check_finite, reset_to_tasks

STATE = ("tasks", "played", "steps", "_obs", "_returns", "_lengths", "_seeds")


def pictures(space: spaces.Space[Any]) -> frozenset[str]:
    """The modalities with three axes, (H, W, C)."""
    return (
        frozenset(name for name, part in space.items() if len(part.shape or ()) == 3)
        if isinstance(space, spaces.Dict)
        else frozenset()
    )


class WorldVecEnv(VecEnv):
    """A world as Stable-Baselines3's `VecEnv`: batched arrays pass through as they are, pictures
    with a leading axis.

    SB3 turns pictures channels-first, which it knows by their three axes. With a fourth, (1, H, W,
    C), it leaves them.

    `tasks`: what the copies play, in turn, from the next reset on. Episodes' returns and lengths
    are in `infos[i]["episode"]`, as SB3's Monitor has them. `taken`: if it is a list, each step
    appends what was shown and the actions. Raises NotFiniteError when an observation is not finite.
    """

    def __init__(self, world: World) -> None:
        mode = getattr(world, "metadata", {}).get("autoreset_mode")
        if mode is not AutoresetMode.SAME_STEP:
            raise ValueError(
                f"the world's autoreset mode is {mode}, allowed: {AutoresetMode.SAME_STEP}"
            )
        self.world = world
        self.tasks: Sequence[int] = [0]
        self.played: npt.NDArray[np.int64] = np.zeros(world.num_envs, dtype=np.int64)
        self.steps = 0
        self._obs: Observation = {}
        self.taken: list[tuple[Observation, npt.NDArray[Any]]] | None = None
        self._pictures = pictures(world.single_observation_space)
        super().__init__(
            world.num_envs, self._shown(world.single_observation_space), world.single_action_space
        )
        self._returns = np.zeros(world.num_envs)
        self._lengths = np.zeros(world.num_envs, dtype=np.int64)

    def reset(self) -> Observation:
        obs, self.played = reset_to_tasks(self.world, self.tasks, self._seeds[0])
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
        obs, rewards, terminated, truncated, info = self.world.step(self._actions)
        self.steps += self.num_envs
        check_finite(obs, self.steps, rewards)
        self._returns += rewards
        self._lengths += 1
        done = terminated | truncated
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for i in np.flatnonzero(done):
            infos[i]["terminal_observation"] = self._with_axis(info["final_obs"][i], 0)
            infos[i]["TimeLimit.truncated"] = bool(truncated[i] and not terminated[i])
            infos[i]["episode"] = {"r": float(self._returns[i]), "l": int(self._lengths[i])}
        self._returns[done] = 0.0
        self._lengths[done] = 0
        self._obs = obs
        return self._with_axis(obs, 1), rewards.astype(np.float32), done, infos

    def _with_axis(self, obs: Observation, axis: int) -> Observation:
        return (
            {
                name: np.expand_dims(x, axis) if name in self._pictures else x
                for name, x in obs.items()
            }
            if self._pictures
            else obs
        )

    def _shown(self, space: spaces.Space[Any]) -> spaces.Space[Any]:
        """The space as SB3 sees it."""
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
        """What lies between the world and SB3: who plays what, what is shown, returns and lengths
        so far.
        """
        return packed(self, STATE)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        restore(self, state)

    def _indices(self, indices: int | Iterable[int] | None) -> list[int]:
        return (
            list(range(self.num_envs))
            if indices is None
            else list(np.atleast_1d(np.asarray(indices)))
        )

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
