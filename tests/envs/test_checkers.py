"""Both worlds pass the checkers of Gymnasium, of Stable-Baselines3 and of everloop, without a
warning.
"""

import itertools
import subprocess
import sys
import warnings
from typing import Any

import gymnasium as gym
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env as gymnasium_check
from stable_baselines3.common.env_checker import check_env as sb3_check

from everloop.envs import Feedback, check_task_env

IDS = (
    "everloop/Plant-v0",
    "everloop/ImageStream-v0",
    "everloop:everloop/Plant-v0",
    "everloop:everloop/ImageStream-v0",
)
every_world = pytest.mark.parametrize(
    ("env_id", "task_cue"), list(itertools.product(IDS, (True, False)))
)


@pytest.mark.parametrize("env_id", IDS[2:])
def test_a_world_is_made_where_nobody_has_imported_everloop(env_id: str) -> None:
    """The id's "everloop:" does it, and brings in nothing as heavy as torch or scikit-learn."""
    program = (
        "import sys, gymnasium as gym\n"
        f"world = gym.make({env_id!r}).unwrapped\n"
        "assert type(world).__module__.startswith('everloop.envs'), world\n"
        "assert not {'torch', 'stable_baselines3'} & set(sys.modules)\n"
        "assert 'Stream' in type(world).__name__ or not {'scipy', 'sklearn'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)


@every_world
def test_worlds_pass_gymnasiums_checker(env_id: str, task_cue: bool) -> None:
    gymnasium_check(gym.make(env_id, task_cue=task_cue).unwrapped)


@pytest.mark.parametrize("env_id", IDS[:2])
def test_feedback_passes_gymnasiums_checker(env_id: str) -> None:
    """Its one warning, that a wrapper is no raw environment, is what is asked for here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is different from the unwrapped version")
        gymnasium_check(Feedback(gym.make(env_id)))


@every_world
@pytest.mark.parametrize("feedback", [False, True])
def test_worlds_pass_stable_baselines3s_checker(
    env_id: str, task_cue: bool, feedback: bool
) -> None:
    env: gym.Env[Any, Any] = gym.make(env_id, task_cue=task_cue)
    with warnings.catch_warnings():  # everloop's encoders take images from 8x8 up
        warnings.filterwarnings("ignore", message="The minimal resolution for an image is 36x36")
        sb3_check(Feedback(env) if feedback else env)


@every_world
@pytest.mark.parametrize("feedback", [False, True])
def test_worlds_keep_the_contract(env_id: str, task_cue: bool, feedback: bool) -> None:
    env: gym.Env[Any, Any] = gym.make(env_id, task_cue=task_cue)
    check_task_env(Feedback(env) if feedback else env, steps=60)


@pytest.mark.parametrize("env_id", IDS[:2])
@pytest.mark.parametrize("feedback", [False, True])
def test_a_spec_survives_json(env_id: str, feedback: bool) -> None:
    """The world made from the text is the world: the same spec, the same trajectory."""
    first: gym.Env[Any, Any] = gym.make(env_id, task_cue=False)
    first = Feedback(first) if feedback else first
    assert first.spec is not None
    second = gym.make(EnvSpec.from_json(first.spec.to_json()))
    assert second.spec == first.spec
    assert second.observation_space == first.observation_space
    observations = [env.reset(seed=7, options={"task": 1})[0] for env in (first, second)]
    for name, value in observations[0].items():
        assert value.tobytes() == observations[1][name].tobytes()
