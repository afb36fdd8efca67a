"""The contract of a world under any sequence of calls, against a model of who plays which task for
how long.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from hypothesis import example, given, settings
from hypothesis import strategies as st
from user_world import LENGTH, Walk

from everloop.envs import ImageStreamVectorEnv, PlantVectorEnv, SyncTaskVectorEnv, VectorFeedback
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
        assert options == given, "the caller's options are the caller's"
        return result


@dataclass(frozen=True)
class Step:
    seed: int

    def actions(self, env: Any) -> Any:
        """Anything allowed; in a Box also a little more, which the world clips."""
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
modes = st.sampled_from(
    [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED]
)  # of native worlds, others have the first
kinds = pytest.mark.parametrize("kind", ["plant", "stream"])
all_kinds = pytest.mark.parametrize("kind", ["plant", "stream", "user"])


class Model:
    """What the world must say, and what must stay as it was."""

    def __init__(self, env: Any) -> None:
        self.env = env
        self.task, self.elapsed = np.zeros(COPIES, int), np.zeros(COPIES, int)
        self.obs: dict[str, Any] = {}
        self.trace: list[bytes] = []

    def check_and_record(self, arrays: list[Any]) -> None:
        self.trace += [np.asarray(array).tobytes() for array in arrays]

    def reset(self, call: Reset) -> list[Any]:
        obs, info = call.apply(self.env)
        mask = np.ones(COPIES, bool) if call.mask is None else np.array(call.mask)
        if call.task is not None:
            self.task[mask] = call.task
        self.elapsed[mask] = 0
        for name, value in obs.items():
            if (~mask).any():
                np.testing.assert_array_equal(
                    value[~mask], self.obs[name][~mask], f"{name} of copies that were not reset"
                )
        if "feedback" in obs:
            assert not obs["feedback"][mask].any()
        return self.agree(obs, info)

    def step(self, call: Step) -> list[Any]:
        actions = call.actions(self.env)
        given = actions.copy()
        obs, rewards, terminated, truncated, info = self.env.step(actions)
        np.testing.assert_array_equal(actions, given, "the caller's actions are the caller's")
        self.elapsed += 1
        ends = self.elapsed >= HORIZON
        assert not terminated.any()
        np.testing.assert_array_equal(truncated, ends)
        low, high = self.env.reward_range
        assert ((rewards >= low) & (rewards <= high)).all()
        arrays = (
            self.final(ends, info)
            if self.env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
            else []
        )
        if "feedback" in obs:
            felt = self.expected_feedback(actions, rewards)
            for i in np.flatnonzero(ends) if "final_obs" in info else ():
                np.testing.assert_array_equal(info["final_obs"][i]["feedback"], felt[i])
                felt[i] = 0.0
            np.testing.assert_array_equal(obs["feedback"], felt)
        if "final_obs" in info:
            self.elapsed[ends] = 0
        return [*self.agree(obs, info), rewards, terminated, truncated, *arrays]

    def final(self, ends: Any, info: dict[str, Any]) -> list[Any]:
        """SAME_STEP: the last observation and info of each copy that ended, of no other."""
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
        felt = (
            np.eye(space.n)[actions - space.start]
            if actions.dtype.kind == "i"
            else np.clip(actions, -1, 1)
        )
        return np.column_stack([felt, rewards]).astype(np.float32)

    def agree(self, obs: Any, info: dict[str, Any]) -> list[Any]:
        assert obs in self.env.observation_space
        np.testing.assert_array_equal(info["task"], self.task)
        if "cue" in obs:
            np.testing.assert_array_equal(obs["cue"], np.eye(3)[self.task])
        self.obs = {name: value.copy() for name, value in obs.items()}
        return [
            *obs.values(),
            *(info[name] for name in ("task", "label", "index", "epoch") if name in info),
        ]

    def play(self, played: list[Reset | Step], scribble: bool = False) -> list[bytes]:
        """All calls; no two returned arrays ever share memory.

        `scribble` overwrites what a call returned after it.
        """
        kept: list[list[Any]] = []
        for call in played:
            arrays = self.step(call) if isinstance(call, Step) else self.reset(call)
            self.check_and_record(arrays)
            assert not any(
                np.shares_memory(new, old) for new in arrays for olds in kept for old in olds
            )
            assert not any(np.shares_memory(a, b) for a, b in itertools.combinations(arrays, 2))
            kept.append(arrays)
            if scribble:
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
    """Spaces, tasks, episode ends, feedback, untouched copies; and the same calls give the same
    bytes again.

    Again: in a fresh world whose every returned array is overwritten at once, and in one with a
        past.
    """
    sequence = [first, *more]
    trace = Model(world(kind, feedback, cue, mode)).play(sequence)
    used = world(kind, feedback, cue, mode)
    assert Model(used).play(sequence, scribble=True) == trace
    assert Model(used).play(sequence) == trace


@kinds
@given(first=first_calls, before=calls, after=calls, seed=st.none() | st.integers(0, 9))
@settings(deadline=None, max_examples=20)
def test_a_refused_reset_changes_nothing(
    kind: str, first: Reset, before: list[Any], after: list[Any], seed: int | None
) -> None:
    """Unknown tasks and masks that fit no vector raise ValueError, and the trajectory goes on to
    the bit.
    """
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
def test_a_seeded_masked_reset_leaves_the_other_copies_alone(kind: str) -> None:
    """Seeded or not, a mask says whose episode begins anew."""
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
