"""The registered worlds pass the checkers of Gymnasium, Stable-Baselines3 and everloop."""

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

IDS = tuple(
    f"everloop/{name}-v0"
    for name in ("Beacons", "Plant", "ImageStream", "TextStream", "FeatureStream")
)
every_world = pytest.mark.parametrize(
    ("env_id", "task_cue"), list(itertools.product(IDS, (True, False)))
)


@pytest.mark.parametrize("env_id", [f"everloop:{env_id}" for env_id in IDS])
def test_a_world_is_made_without_importing_everloop_first(env_id: str) -> None:
    """The prefix "everloop:" imports it, but not torch; scikit-learn only for the digits."""
    program = (
        "import sys, gymnasium as gym\n"
        f"world = gym.make({env_id!r}).unwrapped\n"
        "assert type(world).__module__.startswith('everloop.envs'), world\n"
        "assert not {'torch', 'stable_baselines3'} & set(sys.modules)\n"
        "assert 'Stream' in type(world).__name__ or not {'scipy', 'sklearn'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)


endless = pytest.mark.filterwarnings("ignore:.*A Box observation space m")  # vectors have no bound


@endless
@every_world
def test_worlds_pass_the_gymnasium_checker(env_id: str, task_cue: bool) -> None:
    gymnasium_check(gym.make(env_id, task_cue=task_cue).unwrapped)


@endless
@pytest.mark.parametrize("env_id", IDS)
def test_feedback_passes_the_gymnasium_checker(env_id: str) -> None:
    """Its warning that the wrapper changes the environment is ignored: that is the purpose."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is different from the unwrapped version")
        gymnasium_check(Feedback(gym.make(env_id)))


@every_world
@pytest.mark.parametrize("feedback", [False, True])
def test_worlds_pass_the_stable_baselines3_checker(
    env_id: str, task_cue: bool, feedback: bool
) -> None:
    env: gym.Env[Any, Any] = gym.make(env_id, task_cue=task_cue)
    with warnings.catch_warnings():  # everloop's encoders take images of 8x8 or more
        warnings.filterwarnings("ignore", message="The minimal resolution for an image is 36x36")
        sb3_check(Feedback(env) if feedback else env)


@every_world
@pytest.mark.parametrize("feedback", [False, True])
def test_worlds_keep_the_contract(env_id: str, task_cue: bool, feedback: bool) -> None:
    env: gym.Env[Any, Any] = gym.make(env_id, task_cue=task_cue)
    check_task_env(Feedback(env) if feedback else env, steps=60)


@pytest.mark.parametrize("env_id", IDS)
@pytest.mark.parametrize("feedback", [False, True])
def test_a_spec_survives_json(env_id: str, feedback: bool) -> None:
    """The world made from the JSON has the same spec, space and first observation."""
    first: gym.Env[Any, Any] = gym.make(env_id, task_cue=False)
    first = Feedback(first) if feedback else first
    assert first.spec is not None
    second = gym.make(EnvSpec.from_json(first.spec.to_json()))
    assert second.spec == first.spec
    assert second.observation_space == first.observation_space
    observations = [env.reset(seed=7, options={"task": 1})[0] for env in (first, second)]
    for name, value in observations[0].items():
        assert value.tobytes() == observations[1][name].tobytes()
