"""`make_vec` gives native and user-made worlds one interface."""

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode
from user_world import LENGTH, Walk

from everloop.envs import (
    ImageStreamEnv,
    ImageStreamVectorEnv,
    PlantVectorEnv,
    SyncTaskVectorEnv,
    VectorFeedback,
    make_vec,
)
from everloop.envs.data import from_arrays


@pytest.fixture
def walk_id() -> Iterator[str]:
    gym.register("user/Walk-v0", entry_point=Walk)
    yield "user/Walk-v0"
    del gym.registry["user/Walk-v0"]


@pytest.mark.parametrize(
    ("env_id", "world"),
    [("everloop/Plant-v0", PlantVectorEnv), ("everloop/ImageStream-v0", ImageStreamVectorEnv)],
)
def test_native_worlds_are_batched_natively(env_id: str, world: type) -> None:
    env = make_vec(env_id, 5, task_cue=True)
    assert type(env) is world
    assert env.num_envs == 5
    assert "cue" in env.single_observation_space.spaces  # type: ignore[attr-defined]
    assert type(make_vec(env_id, feedback=True)) is VectorFeedback
    assert make_vec(env_id).num_envs == 1


@pytest.mark.parametrize("env_id", ["everloop/Plant-v0", "everloop/ImageStream-v0"])
def test_a_vectors_spec_survives_json(env_id: str) -> None:
    env = make_vec(env_id, 3, task_cue=True)
    assert env.spec is not None
    again = gym.make_vec(EnvSpec.from_json(env.spec.to_json()), num_envs=3)
    for name, value in env.reset(seed=4)[0].items():
        assert value.tobytes() == again.reset(seed=4)[0][name].tobytes()


@pytest.mark.parametrize(
    "env_id",
    [
        "everloop/Plan-v0",
        "Plant-v0",
        "everloop/Plant-v9",
        "no such world",
        "no_such_module:Plant-v0",
    ],
)
def test_an_unknown_world_is_refused_by_its_name(env_id: str) -> None:
    with pytest.raises(
        ValueError,
        match=f"unknown world '{env_id}': choose one of everloop/ImageStream-v0, everloop/Plant-v0",
    ):
        make_vec(env_id)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_an_environment_without_tasks_is_refused(env_id: str) -> None:
    """The first one is batched natively, the second one is not."""
    with pytest.raises(
        ValueError,
        match=f"'{env_id}' is not a world: it has no `tasks`; derive it from everloop.envs.Task",
    ):
        make_vec(env_id, 2)


def test_an_unknown_parameter_is_refused_by_its_name() -> None:
    with pytest.raises(TypeError, match=r"colour"):
        make_vec("everloop/Plant-v0", colour="red")


def test_a_world_that_registers_itself_is_found_as_gymnasium_finds_it() -> None:
    """ "module:id" imports the module first, as in `gym.make`."""
    assert type(make_vec("everloop:everloop/Plant-v0", 2)) is PlantVectorEnv


@pytest.mark.parametrize("feedback", [False, True])
def test_a_users_world_has_the_interface_of_a_native_one(walk_id: str, feedback: bool) -> None:
    env: Any = make_vec(walk_id, 4, feedback=feedback)
    assert isinstance(env.unwrapped, SyncTaskVectorEnv)
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert env.tasks == Walk.tasks
    assert env.reward_range == Walk.reward_range
    assert np.isnan(env.reference("to-3")).all()
    assert ("feedback" in env.single_observation_space.spaces) == feedback
    with pytest.raises(ValueError, match=r"unknown task 9"):
        env.reference(9)


def test_masked_switches_of_a_users_world(walk_id: str) -> None:
    """Copies play different tasks, keep them through autoreset, and each is paid for its own."""
    env = make_vec(walk_id, 4)
    env.reset(seed=0)
    played = np.array([0, 1, 2, 1])
    for k in (1, 2):
        options = {"task": k, "reset_mask": played == k}
        env.reset(options=options)
        np.testing.assert_array_equal(options["reset_mask"], played == k)
    goals = np.array([Walk.tasks[k].params["goal"] for k in played])
    for step in range(1, 3 * LENGTH):
        obs, rewards, terminated, truncated, info = env.step(np.zeros(4, int))
        assert not terminated.any()
        assert truncated.tolist() == [step % LENGTH == 0] * 4
        np.testing.assert_array_equal(info["task"], played)
        before = (
            np.array([last["place"] for last in info["final_obs"]])
            if truncated.any()
            else obs["place"]
        )
        np.testing.assert_allclose(rewards, -np.abs(before[:, 0] - goals), rtol=1e-6)


def test_a_seed_gives_every_copy_a_chance_of_its_own(walk_id: str) -> None:
    first, second = (make_vec(walk_id, 4).reset(seed=1)[0]["place"] for _ in range(2))
    assert first.tobytes() == second.tobytes()
    assert len(set(first[:, 0].tolist())) == 4


def test_the_info_of_the_step_that_ends_an_episode_is_not_lost() -> None:
    """A vector of single streams reveals the label of every image shown, as the native one does."""
    source = {
        "images": np.arange(8 * 64, dtype=np.uint8).reshape(8, 8, 8) + 1,
        "labels": np.arange(8) % 2 + 1,
    }
    data = from_arrays(*source.values(), *source.values())
    env = SyncTaskVectorEnv([lambda: ImageStreamEnv(data=data, episode_length=3)] * 2)
    obs, _ = env.reset(seed=0)
    for _ in range(7):
        shown = obs["image"][..., 0]
        obs, _, _, _, info = env.step(np.zeros(2, int))
        np.testing.assert_array_equal(source["images"][info["index"]], shown)
        np.testing.assert_array_equal(source["labels"][info["index"]] - 1, info["label"])
