"""A world wrapped as a vector environment of Stable-Baselines3."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from loop_helpers import plant
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

from everloop.envs import PlantVectorEnv, SyncTaskVectorEnv, Task, TaskEnv
from everloop.loop import NotFiniteError, WorldVecEnv
from everloop.loop.world import reset_to_tasks

COPIES, HORIZON = 4, 5


def random_actions(steps: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.uniform(-1, 1, (COPIES, 2)).astype(np.float32) for _ in range(steps)]


def test_steps_equal_those_of_the_world() -> None:
    """The seed, tasks and actions are the same."""
    env, world = WorldVecEnv(plant(COPIES, HORIZON)), plant(COPIES, HORIZON)
    env.tasks = [2, 0]
    env.seed(11)
    ours, (theirs, _) = env.reset(), reset_to_tasks(world, [2, 0], 11)
    assert env.played.tolist() == [2, 0, 2, 0]
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    for actions in random_actions(12):
        ours, rewards, dones, infos = env.step(actions)
        theirs, r, terminated, truncated, info = world.step(actions)
        assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
        np.testing.assert_array_equal(rewards, r.astype(np.float32))
        np.testing.assert_array_equal(dones, terminated | truncated)
        for i in range(COPIES):
            assert ("terminal_observation" in infos[i]) == bool(dones[i])
            if dones[i]:
                for name, value in infos[i]["terminal_observation"].items():
                    np.testing.assert_array_equal(value, info["final_obs"][i][name])


def test_the_last_step_of_an_episode_reports_its_result() -> None:
    """The last observation, return and length equal those of a world that does not autoreset."""
    env = WorldVecEnv(plant(COPIES, HORIZON))
    world = PlantVectorEnv(
        COPIES,
        num_tasks=3,
        observation_dim=3,
        latent_dim=2,
        action_dim=2,
        horizon=HORIZON,
        autoreset_mode=AutoresetMode.DISABLED,
    )
    env.seed(4)
    env.reset()
    world.reset(seed=4, options={"task": 0})
    total = np.zeros(COPIES)
    for actions in random_actions(HORIZON):
        first, _, dones, infos = env.step(actions)
        last, rewards, _, _, _ = world.step(actions)
        total += rewards
    assert dones.all()
    for i in range(COPIES):
        assert infos[i]["TimeLimit.truncated"] is True
        assert infos[i]["episode"] == {"r": pytest.approx(total[i]), "l": HORIZON}
        np.testing.assert_array_equal(
            infos[i]["terminal_observation"]["sensor_0"], last["sensor_0"][i]
        )
        assert not np.array_equal(first["sensor_0"][i], last["sensor_0"][i])
        assert infos[i]["terminal_observation"]["feedback"][:2] == pytest.approx(actions[i])
        np.testing.assert_array_equal(first["feedback"][i], 0.0)


def test_returns_and_lengths_restart_with_each_episode_and_reset() -> None:
    env = WorldVecEnv(plant(COPIES, HORIZON))
    env.seed(4)
    env.reset()
    episodes: list[Any] = []
    rewards_of_copy_0: list[float] = []
    for t, actions in enumerate(random_actions(23)):
        if t == 13:
            env.reset()
            rewards_of_copy_0 = rewards_of_copy_0[:10]  # the unfinished episode is dropped
        _, rewards, dones, infos = env.step(actions)
        rewards_of_copy_0.append(float(rewards[0]))
        if dones[0]:
            episodes.append(infos[0]["episode"])
    assert [e["l"] for e in episodes] == [5, 5, 5, 5]
    sums = np.array(rewards_of_copy_0).reshape(4, 5).sum(1)
    assert [e["r"] for e in episodes] == pytest.approx(sums.tolist(), rel=1e-5)


class TwoSteps(TaskEnv):
    """Every episode ends after two steps; the task says if it terminates, is truncated, or both."""

    tasks = (Task(0, "ends"), Task(1, "is truncated"), Task(2, "both"))
    observation_space = gym.spaces.Dict({"x": gym.spaces.Box(-9.0, 9.0, (1,))})
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        _, info = super().reset(seed=seed, options=options)
        self.t = 0
        return {"x": np.zeros(1, np.float32)}, info

    def step(self, action: Any) -> Any:
        self.t += 1
        over = self.t == 2
        obs = {"x": np.full(1, self.t, np.float32)}
        return (
            obs,
            1.0,
            over and self.task.id != 1,
            over and self.task.id != 0,
            {"task": self.task.id},
        )


def test_only_truncated_episodes_that_did_not_terminate_are_bootstrapped() -> None:
    env = WorldVecEnv(SyncTaskVectorEnv([TwoSteps] * 3))
    env.tasks = [0, 1, 2]
    env.reset()
    env.step(np.zeros(3, np.int64))
    obs, rewards, dones, infos = env.step(np.zeros(3, np.int64))
    assert dones.tolist() == [True] * 3
    assert [info["TimeLimit.truncated"] for info in infos] == [False, True, False]
    assert [info["terminal_observation"]["x"].tolist() for info in infos] == [[2.0]] * 3
    assert [info["episode"] for info in infos] == [{"r": 2.0, "l": 2}] * 3
    assert obs["x"].tolist() == [[0.0]] * 3
    assert rewards.dtype == np.float32


def test_other_autoreset_modes_are_refused() -> None:
    with pytest.raises(
        ValueError,
        match=r"autoreset mode is AutoresetMode\.DISABLED; .* AutoresetMode\.SAME_STEP",
    ):
        WorldVecEnv(PlantVectorEnv(2, autoreset_mode=AutoresetMode.DISABLED))
    other = gym.make_vec("CartPole-v1", 2)
    with pytest.raises(ValueError, match=r"AutoresetMode\.NEXT_STEP"):
        WorldVecEnv(other)
    other.close()


def test_tasks_change_only_at_the_next_reset() -> None:
    env = WorldVecEnv(plant(COPIES, HORIZON))
    env.seed(0)
    env.reset()
    env.tasks = [1]
    obs = env.step(random_actions(1)[0])[0]
    assert obs["cue"].argmax(-1).tolist() == [0] * COPIES
    assert env.reset()["cue"].argmax(-1).tolist() == [1] * COPIES
    for actions in random_actions(2 * HORIZON):  # autoresets keep the task
        obs = env.step(actions)[0]
        assert obs["cue"].argmax(-1).tolist() == [1] * COPIES


def test_a_nan_observation_is_refused_with_its_name_and_step() -> None:
    world = plant(COPIES, HORIZON)
    env = WorldVecEnv(world)
    env.steps = 100
    env.reset()
    step = world.step

    def broken(actions: Any) -> Any:
        obs, *rest = step(actions)
        return obs | {"sensor_1": np.full_like(obs["sensor_1"], np.nan)}, *rest

    world.step = broken
    with pytest.raises(NotFiniteError, match="'sensor_1' holds nan at step 104"):
        env.step(random_actions(1)[0])


def test_attributes_and_methods_are_those_of_the_world() -> None:
    world = plant(COPIES, HORIZON)
    env = WorldVecEnv(world)
    assert env.get_attr("tasks") == [world.tasks] * COPIES
    assert env.get_attr("tasks", indices=[1, 2]) == [world.tasks] * 2
    assert env.env_method("reference", 0, indices=1) == [world.reference(0)]
    env.set_attr("label", 3)
    assert world.label == 3
    assert env.env_is_wrapped(object) == [False] * COPIES
    assert env.num_envs == COPIES
    assert env.observation_space is world.single_observation_space
    assert env.action_space is world.single_action_space


class RolloutRecorder(BaseCallback):
    """Records the observations, actions, rewards and episode starts of each rollout of PPO."""

    def __init__(self) -> None:
        super().__init__()
        self.rollouts: list[dict[str, np.ndarray]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        buffer = self.model.rollout_buffer  # type: ignore[attr-defined]
        obs = {name: value.copy() for name, value in buffer.observations.items()}
        others = {
            "actions": buffer.actions,
            "rewards": buffer.rewards,
            "starts": buffer.episode_starts,
        }
        self.rollouts.append(obs | {name: value.copy() for name, value in others.items()})


def test_unmodified_ppo_collects_the_steps_of_the_world() -> None:
    """A second world gives the same steps for the actions that PPO stored.

    PPO adds gamma times a value to the reward of a truncated step, so gamma is 0.
    """
    env, world = WorldVecEnv(plant(COPIES, HORIZON)), plant(COPIES, HORIZON)
    recorder = RolloutRecorder()
    model = PPO(
        "MultiInputPolicy",
        env,
        n_steps=8,
        batch_size=16,
        n_epochs=1,
        gamma=0.0,
        seed=3,
        device="cpu",
    )
    before = model.policy.state_dict()["action_net.weight"].clone()
    model.learn(64, callback=recorder)
    assert len(recorder.rollouts) == 2
    assert not np.array_equal(before, model.policy.state_dict()["action_net.weight"])
    obs, _ = reset_to_tasks(world, [0], 3)
    start = np.ones(COPIES, np.bool_)
    for rollout in recorder.rollouts:
        for t in range(8):
            for name, value in obs.items():
                np.testing.assert_array_equal(rollout[name][t], value)
            np.testing.assert_array_equal(rollout["starts"][t], start)
            obs, rewards, terminated, truncated, _ = world.step(rollout["actions"][t].clip(-1, 1))
            np.testing.assert_array_equal(rollout["rewards"][t], rewards.astype(np.float32))
            start = terminated | truncated


def test_a_nonfinite_last_observation_is_named_as_such() -> None:
    """Stable-Baselines3 learns from it, but no step shows it."""
    world = plant(COPIES, 2)
    env = WorldVecEnv(world)
    env.reset()
    step = world.step

    def broken(actions: Any) -> Any:
        *rest, info = step(actions)
        if "final_obs" in info:
            info["final_obs"][1]["sensor_1"][:] = np.nan
        return *rest, info

    world.step = broken
    first, second = random_actions(2)
    env.step(first)
    with pytest.raises(
        NotFiniteError, match=r"^an episode's last observation 'sensor_1' holds nan at step 8;"
    ):
        env.step(second)
