"""`everloop check-env`: one line for each rule that an environment breaks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from run_files import fails

from everloop.scenarios.cli import main


class Far(gym.Env[Any, Any]):
    """Its first observation is outside its space, and episodes end after three steps."""

    observation_space = spaces.Box(0.0, 1.0, (2,), np.float32)
    action_space = spaces.Discrete(2)
    first, steps = 5.0, 0

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return np.array([self.first, self.np_random.random()], np.float32), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        seen = np.array([0.1, self.np_random.random()], np.float32)
        return seen, 1.0, self.steps == 3, False, {}


class Near(Far):
    """Keeps all rules."""

    first = 0.5


class Breaks(Near):
    """Breaks in its second step."""

    def step(self, action: Any) -> Any:
        if self.steps:
            raise RuntimeError("the motor is\nhot")
        return super().step(action)


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    ids = {f"{kind.__name__}-v0": kind for kind in (Far, Near, Breaks)}
    for env_id, kind in ids.items():
        gym.register(env_id, kind)
    yield
    for env_id in ids:
        del gym.registry[env_id]


def lines(capsys: pytest.CaptureFixture[str], status: int, *words: str) -> list[str]:
    assert main(["check-env", *words]) == status
    return capsys.readouterr().out.splitlines()


def test_an_environment_that_keeps_the_rules_is_said_to(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["Near-v0"], ["everloop/Plant-v0"], ["Near-v0", "--tasks", '[{"first": 0.2}]']):
        assert lines(capsys, 0, *words) == [f"{words[0]}: nothing found; it can be used"]


def test_every_checker_names_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    found = lines(capsys, 2, "Far-v0")
    assert [line.split(":")[0] for line in found[:-1]] == [
        "gymnasium",
        "stable-baselines3",
        "everloop",
    ]
    assert all(": wrong: " in line for line in found[:-1])
    assert found[2].endswith("is outside the observation space")
    assert found[-1] == "Far-v0: 3 wrong, 0 warnings"


def test_a_task_can_mend_or_break_it(capsys: pytest.CaptureFixture[str]) -> None:
    found = lines(capsys, 2, "Far-v0", "--tasks", '[{"first": 0.5}, {"first": 7.0}]')
    assert "everloop: wrong: the observation of task 1 is outside the observation space" in found


def test_an_error_in_the_environment_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    found = lines(capsys, 2, "Breaks-v0")
    assert "everloop: wrong: RuntimeError: the motor is hot" in found


def test_warnings_do_not_fail(capsys: pytest.CaptureFixture[str]) -> None:
    found = lines(capsys, 0, "Pendulum-v1")
    assert found[-1] == "Pendulum-v1: 0 wrong, 2 warnings"
    assert all("symmetric and normalized" in line for line in found[:-1])


def test_what_is_unknown_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    fails(["check-env", "CartPol-v1"], capsys, "did you mean CartPole-v1?")
    fails(["check-env"], capsys, "no environment is named; write everloop check-env ID")
    fails(["check-env", "Near-v0", "--tasks", '[{"fist": 1}]'], capsys, "did you mean 'first'?")
    fails(["check-env", "Near-v0", "--import", "no_such"], capsys, "no_such")
