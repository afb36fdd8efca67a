"""Single worlds keep the contract under any sequence of calls and equal a vector of one copy."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings
from hypothesis import strategies as st
from user_world import LENGTH, Walk

from everloop.envs import Feedback, ImageStreamVectorEnv, PlantVectorEnv

SIZES: dict[str, dict[str, Any]] = {
    "Plant": {"num_tasks": 4, "horizon": LENGTH, "observation_dim": 2},
    "ImageStream": {
        "episode_length": LENGTH,
        "task_split": {"kind": "classes", "classes_per_task": 2},
        "task_cue": True,
    },
}
worlds = pytest.mark.parametrize("name", ["Plant", "ImageStream", "Walk"])
native = pytest.mark.parametrize("name", ["Plant", "ImageStream"])
resets = st.tuples(st.none() | st.integers(0, 2), st.booleans(), st.none() | st.integers(0, 9))
runs = st.integers(1, 4).map(lambda times: ["step"] * times)
calls = st.lists(runs | resets.map(lambda reset: [reset]), max_size=10).map(
    lambda parts: list(itertools.chain(*parts))
)
first_resets = st.tuples(st.integers(0, 2), st.booleans(), st.integers(0, 9))


def world(name: str, feedback: bool) -> gym.Env[Any, Any]:
    env: gym.Env[Any, Any] = (
        Walk() if name == "Walk" else gym.make(f"everloop/{name}-v0", **SIZES[name])
    )
    return Feedback(env) if feedback else env


def options_for(env: gym.Env[Any, Any], task: int | None, by_name: bool) -> dict[str, Any]:
    if task is None:
        return {}
    return {"task": env.get_wrapper_attr("tasks")[task].name if by_name else task}


@dataclass(frozen=True)
class Refused:
    """A call that resets to tasks that do not exist."""

    seed: int | None

    def apply(self, env: gym.Env[Any, Any]) -> None:
        for key in (len(env.get_wrapper_attr("tasks")), "no such task"):
            with pytest.raises(ValueError, match=f"unknown task {key!r}"):
                env.reset(seed=self.seed, options={"task": key})


class Model:
    """Play calls and check every returned value; `trace` records all of them."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        self.env = env
        self.trace: list[Any] = []
        self.kept: list[Any] = []
        self.task, self.elapsed = 0, 0

    def check_observation(self, obs: Any, info: dict[str, Any], overwrite: bool) -> None:
        assert obs in self.env.observation_space
        assert info["task"] == self.task
        if "cue" in obs:
            assert obs["cue"].argmax() == self.task
            assert obs["cue"].sum() == 1
        self.trace += [value.tobytes() for value in obs.values()] + sorted(info.items())
        assert not any(np.shares_memory(new, old) for new in obs.values() for old in self.kept)
        self.kept += list(obs.values())
        for value in obs.values() if overwrite else ():
            value[...] = 1

    def reset(
        self, task: int | None, by_name: bool, seed: int | None, overwrite: bool = False
    ) -> None:
        obs, info = self.env.reset(seed=seed, options=options_for(self.env, task, by_name))
        self.task, self.elapsed = self.task if task is None else task, 0
        if "feedback" in obs:
            assert not obs["feedback"].any()
        self.check_observation(obs, info, overwrite)

    def step(self, overwrite: bool) -> None:
        action = self.env.action_space.sample()
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.elapsed += 1
        assert (terminated, truncated) == (False, self.elapsed == LENGTH)
        if "feedback" in obs:
            space = self.env.action_space
            expected = (
                np.eye(space.n)[action - space.start]
                if isinstance(space, gym.spaces.Discrete)
                else np.asarray(action)
            )
            np.testing.assert_array_equal(
                obs["feedback"], np.append(expected, reward).astype(np.float32)
            )
        self.trace += [float(reward), truncated]
        self.check_observation(obs, info, overwrite)

    def play(self, sequence: list[Any], overwrite: bool = False) -> list[Any]:
        self.env.action_space.seed(0)
        for call in sequence:
            if isinstance(call, Refused):
                call.apply(self.env)
            elif call != "step":
                self.reset(*call, overwrite=overwrite)
            else:
                if self.elapsed == LENGTH:
                    self.reset(None, False, None, overwrite)
                self.step(overwrite)
        return self.trace


@worlds
@given(first=first_resets, more=calls, feedback=st.booleans())
@settings(deadline=None, max_examples=25)
def test_any_sequence_of_calls_keeps_the_contract(
    name: str, first: Any, more: list[Any], feedback: bool
) -> None:
    """The same calls return the same bytes again, in another world and in one that was used.

    In the other world every returned array is overwritten at once.
    """
    trace = Model(world(name, feedback)).play([first, *more])
    used = world(name, feedback)
    assert Model(used).play([first, *more], overwrite=True) == trace
    assert Model(used).play([first, *more]) == trace


@worlds
@given(first=first_resets, before=calls, after=calls, seed=st.none() | st.integers(0, 9))
@settings(deadline=None, max_examples=20)
def test_a_refused_reset_changes_nothing(
    name: str, first: Any, before: list[Any], after: list[Any], seed: int | None
) -> None:
    """After an unknown task, the trajectory continues as without the call."""
    env = world(name, feedback=True)
    after = [*after, (len(env.get_wrapper_attr("tasks")) - 1, False, None), "step"]
    trace = Model(env).play([first, *before, *after])
    assert Model(env).play([first, *before, Refused(seed), *after]) == trace


@native
@given(first=first_resets, more=calls, cue=st.booleans())
@settings(deadline=None, max_examples=20)
def test_a_single_world_equals_a_vector_of_one_copy(
    name: str, first: Any, more: list[Any], cue: bool
) -> None:
    """The same seeds and calls return the same bytes."""
    parameters = SIZES[name] | {"task_cue": cue}
    vector_class: Any = {"Plant": PlantVectorEnv, "ImageStream": ImageStreamVectorEnv}[name]
    vector = vector_class(1, autoreset_mode=AutoresetMode.DISABLED, **parameters)
    single = gym.make(f"everloop/{name}-v0", **parameters)
    single.action_space.seed(0)
    for call in (first, *more):
        if call == "step":
            action = single.action_space.sample()
            one, many = single.step(action), vector.step(np.asarray(action)[None])
            assert one[1:4] == tuple(part[0] for part in many[1:4])
        else:
            task, by_name, seed = call
            one, many = (
                env.reset(seed=seed, options=options_for(single, task, by_name))
                for env in (single, vector)
            )
        assert one[0].keys() == many[0].keys()
        for key in one[0]:
            assert one[0][key].tobytes() == many[0][key].tobytes()
        assert one[-1] == {key: value[0] for key, value in many[-1].items()}
