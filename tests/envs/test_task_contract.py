"""Vector worlds keep the contract under any sequence of calls, compared with a simple model."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from hypothesis import example, given, settings
from hypothesis import strategies as st
from user_world import LENGTH, Walk

from everloop.envs import (
    ImageStreamVectorEnv,
    PlantVectorEnv,
    SyncTaskVectorEnv,
    Task,
    TaskVectorEnv,
    VectorFeedback,
)
from everloop.envs.data import from_arrays

COPIES = 3
HORIZON = LENGTH
rng = np.random.default_rng(0)
IMAGES = {
    "images": rng.integers(0, 256, (18, 8, 8), np.uint8),
    "labels": np.arange(18) % 6,
    "test_images": rng.integers(0, 256, (6, 8, 8), np.uint8),
    "test_labels": np.arange(6),
}


def world(
    kind: str, feedback: bool, cue: bool = True, mode: AutoresetMode = AutoresetMode.SAME_STEP
) -> Any:
    env: Any
    if kind == "user":
        env = SyncTaskVectorEnv([Walk] * COPIES)
    elif kind == "plant":
        env = PlantVectorEnv(
            COPIES, horizon=HORIZON, observation_dim=2, task_cue=cue, autoreset_mode=mode
        )
    else:
        env = ImageStreamVectorEnv(
            COPIES, from_arrays(**IMAGES), episode_length=HORIZON, task_cue=cue, autoreset_mode=mode
        )
    return VectorFeedback(env) if feedback else env


@dataclass(frozen=True)
class Reset:
    task: int | None
    by_name: bool = False
    mask: tuple[bool, ...] | None = None
    seed: int | None = None

    def apply(self, env: Any) -> tuple[Any, dict[str, Any]]:
        options: dict[str, Any] = {}
        if self.task is not None:
            options["task"] = env.tasks[self.task].name if self.by_name else self.task
        if self.mask is not None:
            options["reset_mask"] = np.array(self.mask)
        given = dict(options)
        result: tuple[Any, dict[str, Any]] = env.reset(seed=self.seed, options=options or None)
        assert options == given, "the caller's options must not change"
        return result


@dataclass(frozen=True)
class Step:
    seed: int

    def actions(self, env: Any) -> Any:
        """Return random actions; in a Box also some outside the bounds, which the world clips."""
        dice, shape = np.random.default_rng(self.seed), env.action_space.shape
        if env.action_space.dtype.kind == "i":
            return env.single_action_space.start + dice.integers(
                env.single_action_space.n, size=shape
            )
        return dice.uniform(-1.5, 1.5, shape).astype(np.float32)


tasks = st.none() | st.integers(0, 2)
masks = st.none() | st.tuples(*[st.booleans()] * COPIES).filter(any)
full_resets = st.builds(
    Reset, task=tasks, by_name=st.booleans(), mask=st.none(), seed=st.none() | st.integers(0, 9)
)
masked_resets = st.builds(Reset, task=tasks, by_name=st.booleans(), mask=masks)
runs = st.lists(st.builds(Step, st.integers(0, 99)), min_size=1, max_size=6)
calls = st.lists(
    runs | runs | (masked_resets | full_resets).map(lambda reset: [reset]), max_size=12
).map(lambda parts: list(itertools.chain(*parts)))
first_calls = st.builds(
    Reset, task=st.integers(0, 2), by_name=st.booleans(), seed=st.integers(0, 9)
)
# of native worlds; others have SAME_STEP
modes = st.sampled_from([AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
kinds = pytest.mark.parametrize("kind", ["plant", "stream"])
all_kinds = pytest.mark.parametrize("kind", ["plant", "stream", "user"])


class Model:
    """Play calls and check every returned value; `trace` records all of them as bytes."""

    def __init__(self, env: Any) -> None:
        self.env = env
        self.task, self.elapsed = np.zeros(COPIES, int), np.zeros(COPIES, int)
        self.obs: dict[str, Any] = {}
        self.trace: list[bytes] = []

    def reset(self, call: Reset) -> list[Any]:
        obs, info = call.apply(self.env)
        mask = np.ones(COPIES, bool) if call.mask is None else np.array(call.mask)
        if call.task is not None:
            self.task[mask] = call.task
        self.elapsed[mask] = 0
        for name, value in obs.items():
            if (~mask).any():
                np.testing.assert_array_equal(
                    value[~mask],
                    self.obs[name][~mask],
                    f"{name} of copies that were not reset must not change",
                )
        if "feedback" in obs:
            assert not obs["feedback"][mask].any()
        return self.check_observation(obs, info)

    def step(self, call: Step) -> list[Any]:
        actions = call.actions(self.env)
        given = actions.copy()
        obs, rewards, terminated, truncated, info = self.env.step(actions)
        np.testing.assert_array_equal(actions, given, "the caller's actions must not change")
        self.elapsed += 1
        ends = self.elapsed >= HORIZON
        assert not terminated.any()
        np.testing.assert_array_equal(truncated, ends)
        low, high = self.env.reward_range
        assert ((rewards >= low) & (rewards <= high)).all()
        arrays = (
            self.check_final(ends, info)
            if self.env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
            else []
        )
        if "feedback" in obs:
            feedback = self.expected_feedback(actions, rewards)
            for i in np.flatnonzero(ends) if "final_obs" in info else ():
                np.testing.assert_array_equal(info["final_obs"][i]["feedback"], feedback[i])
                feedback[i] = 0.0
            np.testing.assert_array_equal(obs["feedback"], feedback)
        if "final_obs" in info:
            self.elapsed[ends] = 0
        return [*self.check_observation(obs, info), rewards, terminated, truncated, *arrays]

    def check_final(self, ends: Any, info: dict[str, Any]) -> list[Any]:
        """Check that just the ended copies have a final observation and info."""
        assert ("final_obs" in info) == ends.any()
        if not ends.any():
            return []
        np.testing.assert_array_equal(info["_final_obs"], ends)
        np.testing.assert_array_equal(info["_final_info"], ends)
        np.testing.assert_array_equal(info["final_info"]["task"][ends], self.task[ends])
        for last, ended in zip(info["final_obs"], ends, strict=True):
            assert (last in self.env.single_observation_space) if ended else last is None
        arrays = [value for i in np.flatnonzero(ends) for value in info["final_obs"][i].values()]
        return [*arrays, *(value for value in info["final_info"].values())]

    def expected_feedback(self, actions: Any, rewards: Any) -> Any:
        space = self.env.single_action_space
        feedback = (
            np.eye(space.n)[actions - space.start]
            if actions.dtype.kind == "i"
            else np.clip(actions, -1, 1)
        )
        return np.column_stack([feedback, rewards]).astype(np.float32)

    def check_observation(self, obs: Any, info: dict[str, Any]) -> list[Any]:
        assert obs in self.env.observation_space
        np.testing.assert_array_equal(info["task"], self.task)
        if "cue" in obs:
            np.testing.assert_array_equal(obs["cue"], np.eye(3)[self.task])
        self.obs = {name: value.copy() for name, value in obs.items()}
        return [
            *obs.values(),
            *(info[name] for name in ("task", "label", "index", "epoch") if name in info),
        ]

    def play(self, played: list[Reset | Step], overwrite: bool = False) -> list[bytes]:
        """Play all calls; check that no two returned arrays share memory.

        Args:
            played: The calls.
            overwrite: Overwrite the returned arrays after each call.
        """
        kept: list[list[Any]] = []
        for call in played:
            arrays = self.step(call) if isinstance(call, Step) else self.reset(call)
            self.trace += [np.asarray(array).tobytes() for array in arrays]
            assert not any(
                np.shares_memory(new, old) for new in arrays for olds in kept for old in olds
            )
            assert not any(np.shares_memory(a, b) for a, b in itertools.combinations(arrays, 2))
            kept.append(arrays)
            if overwrite:
                for array in arrays:
                    array[...] = 1
        return self.trace


staggered = [
    Step(0),
    Step(1),
    Reset(None, mask=(False, True, False)),
    *map(Step, range(9)),
    Reset(2, mask=(True, False, False)),
]


@all_kinds
@given(first=first_calls, more=calls, feedback=st.booleans(), cue=st.booleans(), mode=modes)
@example(
    first=Reset(1, seed=0), more=staggered, feedback=True, cue=True, mode=AutoresetMode.SAME_STEP
)
@settings(deadline=None, max_examples=50)
def test_any_sequence_of_calls_keeps_the_contract(
    kind: str, first: Reset, more: list[Any], feedback: bool, cue: bool, mode: AutoresetMode
) -> None:
    """The same calls return the same bytes again, in another world and in one that was used.

    In the other world every returned array is overwritten at once.
    """
    sequence = [first, *more]
    trace = Model(world(kind, feedback, cue, mode)).play(sequence)
    used = world(kind, feedback, cue, mode)
    assert Model(used).play(sequence, overwrite=True) == trace
    assert Model(used).play(sequence) == trace


@kinds
@given(first=first_calls, before=calls, after=calls, seed=st.none() | st.integers(0, 9))
@settings(deadline=None, max_examples=20)
def test_a_refused_reset_changes_nothing(
    kind: str, first: Reset, before: list[Any], after: list[Any], seed: int | None
) -> None:
    """After an unknown task or a bad mask, the trajectory continues as without the call."""
    env, after = world(kind, feedback=True), [*after, Reset(None), Step(0)]
    trace = Model(env).play([first, *before, *after])
    model = Model(env)
    model.play([first, *before])
    for options in (
        {"task": 3},
        {"task": "no such task", "reset_mask": np.array([True, False, True])},
        {"task": 1, "reset_mask": np.ones(COPIES + 1, bool)},
        {"task": 1, "reset_mask": np.ones(COPIES)},
        {"task": 1, "reset_mask": np.zeros(COPIES, bool)},
    ):
        with pytest.raises(ValueError, match=r"unknown task|reset_mask has shape"):
            env.reset(seed=seed, options=options)
    assert model.play(after) == trace


@all_kinds
def test_a_seeded_masked_reset_does_not_change_the_other_copies(kind: str) -> None:
    """Even though a seed without a mask would restart all copies."""
    env = world(kind, feedback=True)
    model = Model(env)
    model.play(
        [
            Reset(1, seed=0),
            Step(1),
            Step(2),
            Reset(2, mask=(True, False, False), seed=5),
            Step(3),
            Step(4),
        ]
    )
    assert model.task.tolist() == [2, 1, 1]


class Countdown(TaskVectorEnv):
    """A native world: copy i terminates after i + 1 steps, and is truncated after 3."""

    tasks = (Task(0, "only"),)
    single_observation_space = spaces.Dict({"count": spaces.Box(0.0, 9.0, (1,), np.float32)})
    single_action_space = spaces.Discrete(2)
    horizon = 3

    def _begin(self, mask: Any, seeded: bool) -> None:
        self.count = np.where(mask, 0, getattr(self, "count", 0))

    def _advance(self, actions: Any) -> Any:
        self.count = self.count + 1
        return np.ones(self.num_envs), {}

    def _observe(self) -> Any:
        return {"count": self.count[:, None].astype(np.float32)}

    def _terminated(self) -> Any:
        return self.count > np.arange(self.num_envs)


def test_episodes_of_a_native_world_may_end_before_its_horizon() -> None:
    env = Countdown(4)
    env.reset(seed=0)
    for step in range(1, 13):
        obs, _, terminated, truncated, info = env.step(np.zeros(4, int))
        lengths = np.array([1, 2, 3, 3])
        ended = step % lengths == 0
        assert terminated.tolist() == (ended & [True, True, True, False]).tolist()
        assert truncated.tolist() == (ended & [False, False, True, True]).tolist()
        np.testing.assert_array_equal(obs["count"][:, 0], step % lengths)
        assert info["_final_obs"].tolist() == ended.tolist()
        for i in np.flatnonzero(ended):
            assert info["final_obs"][i]["count"].tolist() == [lengths[i]]
    without = Countdown(2, AutoresetMode.DISABLED)
    without.reset(seed=0)
    assert without.step(np.zeros(2, int))[2].tolist() == [True, False]
