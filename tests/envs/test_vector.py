"""`make_vec` gives native worlds and user worlds the same interface."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import RecordEpisodeStatistics
from gymnasium.wrappers import vector as wrappers
from user_world import LENGTH, Walk

from everloop.contract import check_world
from everloop.envs import (
    BeaconsVectorEnv,
    FeatureStreamVectorEnv,
    ImageStreamEnv,
    ImageStreamVectorEnv,
    PlantVectorEnv,
    SyncTaskVectorEnv,
    Task,
    TaskEnv,
    TaskVectorWrapper,
    TextStreamVectorEnv,
    VectorFeedback,
    check_task_env,
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
    [
        ("everloop/Beacons-v0", BeaconsVectorEnv),
        ("everloop/Plant-v0", PlantVectorEnv),
        ("everloop/ImageStream-v0", ImageStreamVectorEnv),
        ("everloop/TextStream-v0", TextStreamVectorEnv),
        ("everloop/FeatureStream-v0", FeatureStreamVectorEnv),
    ],
)
def test_native_worlds_use_their_own_vector_class(env_id: str, world: type) -> None:
    env = make_vec(env_id, 5, task_cue=True)
    assert type(env) is world
    assert env.num_envs == 5
    assert "cue" in env.single_observation_space.spaces  # type: ignore[attr-defined]
    assert type(make_vec(env_id, feedback=True)) is VectorFeedback
    assert make_vec(env_id).num_envs == 1


@pytest.mark.parametrize(
    "env_id", ["everloop/Beacons-v0", "everloop/Plant-v0", "everloop/ImageStream-v0"]
)
def test_the_spec_of_a_vector_survives_json(env_id: str) -> None:
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
def test_an_unknown_world_is_refused_by_its_id(env_id: str) -> None:
    worlds = ", ".join(sorted(name for name in gym.registry if name.startswith("everloop/")))
    assert "everloop/Plant-v0, everloop/Sequence-v0" in worlds
    with pytest.raises(
        ValueError,
        match=f"unknown world '{env_id}': choose one of {worlds}",
    ):
        make_vec(env_id)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_an_environment_without_tasks_is_refused(env_id: str) -> None:
    """Of the two, only CartPole has a vector class of its own."""
    with pytest.raises(
        ValueError,
        match=f"'{env_id}' is not a world: it has no `tasks`; derive it from everloop.envs.Task",
    ):
        make_vec(env_id, 2)


def test_an_unknown_parameter_is_refused_by_its_name() -> None:
    with pytest.raises(TypeError, match="colour"):
        make_vec("everloop/Plant-v0", colour="red")


def test_a_module_in_the_id_is_imported_first() -> None:
    """As in `gym.make`."""
    assert type(make_vec("everloop:everloop/Plant-v0", 2)) is PlantVectorEnv


@pytest.mark.parametrize("feedback", [False, True])
def test_a_user_world_has_the_interface_of_a_native_one(walk_id: str, feedback: bool) -> None:
    env: Any = make_vec(walk_id, 4, feedback=feedback)
    assert isinstance(env.unwrapped, SyncTaskVectorEnv)
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert env.tasks == Walk.tasks
    assert env.reward_range == Walk.reward_range
    assert np.isnan(env.reference("to-3")).all()
    assert ("feedback" in env.single_observation_space.spaces) == feedback
    with pytest.raises(ValueError, match="unknown task 9"):
        env.reference(9)


def test_copies_of_a_user_world_can_play_different_tasks(walk_id: str) -> None:
    """Each copy keeps its task through autoreset and is rewarded for it."""
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


def test_a_seed_starts_each_copy_differently(walk_id: str) -> None:
    first, second = (make_vec(walk_id, 4).reset(seed=1)[0]["place"] for _ in range(2))
    assert first.tobytes() == second.tobytes()
    assert len(set(first[:, 0].tolist())) == 4


class Carts(TaskEnv):
    """Gymnasium's CartPole, unchanged, as a world of two equal tasks."""

    tasks = (Task(0, "a"), Task(1, "b"))
    observation_space = gym.spaces.Dict({"x": gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)})
    action_space = gym.spaces.Discrete(2)

    def __init__(self) -> None:
        self.cart = gym.make("CartPole-v1")

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        _, info = super().reset(seed=seed, options=options)
        return {"x": self.cart.reset(seed=seed)[0]}, info


def test_copies_and_neighbouring_seeds_share_no_first_state() -> None:
    """Gymnasium seeds copies with seed + i, so that seeds 0 and 1 would share 31 of 32 states."""
    first = {
        seed: [x.tobytes() for x in SyncTaskVectorEnv([Carts] * 32).reset(seed=seed)[0]["x"]]
        for seed in (0, 1, 2)
    }
    assert len({x for states in first.values() for x in states}) == 3 * 32
    again = SyncTaskVectorEnv([Carts] * 32).reset(seed=1)[0]["x"]
    assert [x.tobytes() for x in again] == first[1]
    listed = SyncTaskVectorEnv([Carts] * 2).reset(seed=[5, 5])[0]["x"]
    np.testing.assert_array_equal(listed[0], listed[1])


def test_the_info_of_an_episodes_last_step_is_kept() -> None:
    """A vector of single streams gives the label of every shown image, as a native one does."""
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


class Verbose(Walk):
    """Its info has a dict, whose entries depend on the step, and entries of any kind."""

    def step(self, action: Any) -> Any:
        *rest, info = super().step(action)
        inner = {"steps": self.elapsed, "last": {"place": np.full(2, self.place)}}
        return *rest, info | {"inner": inner, "word": "abc", "pair": [1, 2], "none": None}


def test_dicts_in_the_info_are_kept_also_at_an_episodes_end() -> None:
    env = SyncTaskVectorEnv([lambda: RecordEpisodeStatistics(Verbose())] * 2)
    env.reset(seed=0)
    total = np.zeros(2)
    for step in range(1, 2 * LENGTH + 1):
        obs, rewards, _, truncated, info = env.step(np.array([1, 0]))
        assert info["inner"]["steps"].tolist() == [(step - 1) % LENGTH + 1] * 2
        last = (
            np.stack([o["place"] for o in info["final_obs"]]) if truncated.any() else obs["place"]
        )
        shown = info["inner"]["last"]["place"].astype(np.float32)
        np.testing.assert_array_equal(shown, np.repeat(last, 2, 1))
        assert info["word"].tolist() == ["abc", "abc"]
        total = rewards + (0.0 if step % LENGTH == 1 else total)
        assert ("episode" in info) == truncated.any()
        if truncated.any():
            np.testing.assert_allclose(info["episode"]["r"], total, rtol=1e-6)


def test_entries_of_one_copys_last_step_replace_only_its_own() -> None:
    """Copy 0 ends after each step; the info of its reset has the same keys."""

    class Short(Verbose):
        def reset(self, **kwargs: Any) -> Any:
            obs, info = super().reset(**kwargs)
            return obs, info | {"inner": {"steps": -1}, "share": 1.0}

        def step(self, action: Any) -> Any:
            obs, reward, _, _, info = super().step(action)
            return obs, reward, True, False, info | {"share": 0.5}

    class Long(Short):
        def step(self, action: Any) -> Any:
            obs, reward, _, _, info = super().step(action)
            return obs, reward, False, False, info | {"share": 0.25}

    env = SyncTaskVectorEnv([Short, Long])
    env.reset(seed=0)
    for step in (1, 2, 3):
        *_, info = env.step(np.zeros(2, int))
        assert info["share"].tolist() == [0.5, 0.25]
        assert info["inner"]["steps"].tolist() == [1, step]


def test_wrappers_of_gymnasium_around_a_vector_become_a_world_again() -> None:
    inner = SyncTaskVectorEnv([Walk] * 3)
    env = TaskVectorWrapper(wrappers.RecordEpisodeStatistics(wrappers.ClipReward(inner, -1, 1)))
    assert env.tasks == Walk.tasks
    assert env.reward_range == Walk.reward_range
    assert np.isnan(env.reference("to-3")).all()
    assert env.metric(0) == inner.metric(0)
    assert env.examples(0) is None
    assert env.state_dict() is None
    env.reset(seed=0, options={"task": 0})
    _, info = env.reset(options={"task": 2, "reset_mask": np.array([True, False, True])})
    assert info["task"].tolist() == [2, 0, 2]
    for _ in range(LENGTH):
        _, rewards, _, truncated, info = env.step(np.ones(3, int))
        assert (rewards >= -1).all()
    assert truncated.all()
    assert info["episode"]["l"].tolist() == [LENGTH] * 3
    with pytest.raises(
        ValueError,
        match=r"^ClipReward hides that it wraps a world; use everloop\.envs\.TaskVectorWrap",
    ):
        check_world(wrappers.ClipReward(inner, -1, 1))


def test_an_environment_without_a_range_of_rewards_has_an_infinite_one() -> None:
    """Gymnasium has dropped the attribute; TaskEnv has it."""

    class Plain(gym.Wrapper[Any, Any, Any, Any]):
        def has_wrapper_attr(self, name: str) -> bool:
            return name != "reward_range" and super().has_wrapper_attr(name)

    env = VectorFeedback(SyncTaskVectorEnv([lambda: Plain(Walk())] * 2))
    assert env.reward_range == (-np.inf, np.inf)
    check_task_env(Plain(Walk()))


def test_a_copy_that_is_no_world_is_refused() -> None:
    with pytest.raises(
        ValueError,
        match=r"CartPole.* is not a world: it has no tasks, reference, .*everloop\.envs\.TaskEnv$",
    ):
        SyncTaskVectorEnv([lambda: gym.make("CartPole-v1")])


def test_an_error_inside_the_module_of_a_world_stays_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_worlds.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="No module named 'no_such_package'") as caught:
        make_vec("own_worlds:Own-v0")
    assert caught.traceback[-1].path == tmp_path / "own_worlds.py"
