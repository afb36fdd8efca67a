"""Callbacks of Stable-Baselines3 in our learners around its algorithms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loop_helpers import PPO_PARAMETERS, agent, off_policy_learner, plant, same, weights
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, EveryNTimesteps
from stable_baselines3.common.noise import OrnsteinUhlenbeckActionNoise

from everloop.loop import Plan, Run, SB3Learner, WorldVecEnv
from everloop.loop.sb3.on_policy import NetworkPolicy


class Counter(BaseCallback):
    """Counts the calls of each hook, and stops each phase after `limit` steps of the world."""

    def __init__(self, limit: int = 10**9) -> None:
        super().__init__()
        self.limit, self.calls = limit, dict[str, int]()
        self.stop_at = limit

    def _count(self, name: str) -> None:
        self.calls[name] = self.calls.get(name, 0) + 1

    def _on_training_start(self) -> None:
        self._count("start")
        self.stop_at = self.num_timesteps + self.limit

    def _on_rollout_end(self) -> None:
        self._count("rollout")

    def _on_step(self) -> bool:
        self._count("step")
        return self.num_timesteps < self.stop_at

    def _on_training_end(self) -> None:
        self._count("end")


def learner(callback: Any) -> SB3Learner:
    return SB3Learner(plant(), agent, PPO, PPO_PARAMETERS, callback=callback)


def test_a_phase_calls_the_hooks_as_learn_does() -> None:
    ours, theirs = Counter(), Counter()
    learner([ours]).learn([0], 64)
    world = plant()
    PPO(
        NetworkPolicy,  # type: ignore[arg-type]
        WorldVecEnv(world),
        policy_kwargs={"network": agent, "space": world.single_observation_space},
        **PPO_PARAMETERS,
    ).learn(64, callback=theirs)
    assert ours.calls == theirs.calls
    assert ours.num_timesteps == theirs.num_timesteps == 64


@pytest.mark.parametrize("kind", ["ppo", "dqn", "sac"])
def test_a_callback_that_stops_ends_the_phase_only(kind: str) -> None:
    counter = Counter(limit=8)
    if kind == "ppo":
        made: Any = learner(counter)
    else:
        made = off_policy_learner(kind == "sac", callback=counter)
    made.learn([0], 64)
    assert made.steps == 8
    assert made.advance() == 0
    made.learn([0], 64)
    assert made.steps == 16
    assert counter.calls["start"] == counter.calls["end"] == 2


def test_a_run_goes_on_with_the_next_phase() -> None:
    made = learner(Counter(limit=8))
    plan = Plan([[0], [1]], [64, 64], 64)
    result = Run(made, plan, plant()).go()
    assert made.steps == 16
    assert [evaluation.step for evaluation in result.evaluations if evaluation.ends_phase] == [
        8,
        16,
    ]


class Drift(BaseCallback):
    """Changes the network by all that it has counted, so that a forgotten count would show."""

    def __init__(self) -> None:
        super().__init__()
        self.sums, self.rewards = np.zeros(2), list[float]()

    def _on_step(self) -> bool:
        self.sums += self.n_calls
        self.rewards.append(float(np.mean(self.locals["rewards"])))
        weight = next(self.model.policy.parameters())
        weight.data += 1e-4 * (self.sums.sum() + sum(self.rewards))
        return True


@pytest.mark.parametrize("kind", ["ppo", "sac"])
def test_callbacks_and_noise_go_on_after_a_resume(kind: str, tmp_path: Path) -> None:
    def run() -> Run:
        callback = [Drift(), EveryNTimesteps(16, Drift())]
        noise = OrnsteinUhlenbeckActionNoise(np.zeros(2), 0.3 * np.ones(2))
        made: Any = (
            learner(callback)
            if kind == "ppo"
            else off_policy_learner(True, parameters={"action_noise": noise}, callback=callback)
        )
        made.seed(0)
        return Run(made, Plan([[0], [1]], [64, 64], 64), plant())

    whole = run()
    whole.go()
    stopped = run()
    stopped.begin()
    while stopped.steps < 96:
        stopped.advance()
    stopped.save(tmp_path / "saved")
    again = run()
    again.load(tmp_path / "saved")
    again.go()
    assert same(weights(again.learner.networks), weights(whole.learner.networks))


def test_the_state_of_other_callbacks_is_refused(tmp_path: Path) -> None:
    state = learner([Drift(), Drift()]).position()
    with pytest.raises(ValueError, match="belongs to 3 callbacks of Stable-Baselines3; here are 2"):
        learner([Drift()]).load_position(state)
