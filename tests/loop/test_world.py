"""Resets to tasks, and checks that observations are finite."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import Wrapper
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_helpers import FlatNet, plant, stream
from user_world import Walk

from everloop.envs import ImageStreamEnv, SyncTaskVectorEnv, TaskVectorWrapper
from everloop.loop import (
    NotFiniteError,
    SupervisedLearner,
    WorldVecEnv,
    mean_return,
)
from everloop.loop.world import check_finite, check_tasks, reset_to_tasks


@settings(deadline=None, max_examples=30)
@given(
    num_envs=st.integers(3, 7),
    tasks=st.lists(st.integers(0, 2), min_size=1, max_size=3, unique=True),
)
def test_copies_are_assigned_to_the_tasks_in_turn(num_envs: int, tasks: list[int]) -> None:
    world = plant(num_envs)
    obs, of_copy = reset_to_tasks(world, tasks, seed=0)
    expected = [tasks[i % len(tasks)] for i in range(num_envs)]
    assert of_copy.tolist() == expected
    assert obs["cue"].argmax(-1).tolist() == expected
    _, _, _, _, info = world.step(np.zeros((num_envs, 2), np.float32))
    assert info["task"].tolist() == expected


def test_a_reset_to_one_task_equals_a_plain_reset() -> None:
    ours, _ = reset_to_tasks(plant(), [2], seed=5)
    theirs, _ = plant().reset(seed=5, options={"task": 2})
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name])


def test_the_seed_determines_the_reset_to_several_tasks() -> None:
    a, b, c = (reset_to_tasks(plant(), [1, 0], seed)[0] for seed in (3, 3, 4))
    assert all(np.array_equal(a[name], b[name]) for name in a)
    assert not np.array_equal(a["sensor_0"], c["sensor_0"])


def test_more_tasks_than_copies_are_refused() -> None:
    with pytest.raises(
        ValueError, match="there are 3 tasks but only 2 copies of the world; use at"
    ):
        reset_to_tasks(plant(2), [0, 1, 2], seed=0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nonfinite_observations_are_refused_with_name_and_step(bad: float) -> None:
    obs = {
        "good": np.zeros((2, 3), np.float32),
        "sensor_7": np.array([[0.0, 1.0], [bad, 2.0]], np.float32),
    }
    with pytest.raises(
        NotFiniteError, match=f"'sensor_7' holds {bad} at step 321; observations must be finite"
    ):
        check_finite(obs, 321)


def test_finite_observations_of_every_dtype_are_accepted() -> None:
    check_finite(
        {
            "a": np.zeros(3, np.float32),
            "b": np.full(3, 255, np.uint8),
            "c": np.zeros(2, np.int64),
            "d": np.ones(2, np.bool_),
        },
        0,
    )


class DropsOptions(Wrapper[Any, Any, Any, Any]):
    """Passes the seed to the world, but not the options, as a wrapper written in a hurry does."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return self.env.reset(seed=seed)


class ForgetsTasks(TaskVectorWrapper):
    """A vector that plays what it is asked at a reset, and task 0 from the first step on."""

    def step(self, actions: Any) -> Any:
        *rest, info = self.env.step(actions)
        return *rest, info | {"task": np.zeros(self.num_envs, np.int64)}


DROPPED = (
    "copy 0 of the world plays task 0 instead of task 1: a reset in SyncTaskVectorEnv > "
    "DropsOptions > {} drops its options; pass `options` on"
)


def walks() -> SyncTaskVectorEnv:
    return SyncTaskVectorEnv([lambda: DropsOptions(Walk())] * 2)


def images() -> SyncTaskVectorEnv:
    return SyncTaskVectorEnv([lambda: DropsOptions(ImageStreamEnv(episode_length=4))] * 2)


def test_a_wrapper_that_drops_the_options_of_a_reset_is_found_wherever_worlds_are_reset() -> None:
    image_net = FlatNet(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)))
    learner = SupervisedLearner(image_net, stream(2))
    for act in (
        lambda: learner.rollout(images(), [1], 2, seed=0),
        lambda: mean_return(learner, images(), 1, seed=0),
        lambda: SupervisedLearner(image_net, images()).learn([1], 8),
    ):
        with pytest.raises(ValueError, match=DROPPED.format("ImageStreamEnv")):
            act()
    env = WorldVecEnv(walks())
    env.tasks = [1]
    with pytest.raises(ValueError, match=DROPPED.format("Walk")):
        env.reset()


def test_a_world_that_changes_its_task_by_itself_is_found_at_the_step() -> None:
    """In training by a stream and by Stable-Baselines3, in evaluation and in rollouts."""
    image_net = FlatNet(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)))
    learner = SupervisedLearner(image_net, ForgetsTasks(stream(2)))
    env = WorldVecEnv(ForgetsTasks(plant(2)))
    env.tasks = [1]
    env.reset()
    for act in (
        lambda: learner.learn([1], 8),
        lambda: learner.rollout(ForgetsTasks(stream(2)), [1], 2, seed=0),
        lambda: mean_return(learner, ForgetsTasks(stream(2)), 1, seed=0),
        lambda: env.step(np.zeros((2, 2), np.float32)),
    ):
        with pytest.raises(ValueError, match="copy 0 of the world plays task 0 instead of task 1"):
            act()


def test_an_info_without_the_tasks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"""^info\["task"\] is None in VectorFeedback > Plant"""):
        check_tasks(plant(2), {}, np.zeros(2, np.int64))
