"""The modality "feedback" is the last action and the last reward, inside its space, and zero where
an episode begins.
"""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit
from user_world import LENGTH, Walk

from everloop.contract import Observation
from everloop.envs import (
    Feedback,
    ImageStreamEnv,
    PlantEnv,
    PlantVectorEnv,
    SyncTaskVectorEnv,
    VectorFeedback,
)
from everloop.envs.feedback import feedback_space


class Valve(Walk):
    """Walk with a matrix of continuous actions whose limits do not hold zero in the middle, and a
    coarse range of rewards.
    """

    action_space = spaces.Box(
        np.array([[-1.0, 0.5]], np.float32), np.array([[3.0, 2.0]], np.float32)
    )
    reward_range = (-2.0, -1.0)

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        observation, _, *rest = super().step(0)
        return observation, -1.5, *rest


def test_a_discrete_action_is_one_hot() -> None:
    env = Feedback(Walk())
    assert env.observation_space["feedback"] == spaces.Box(  # type: ignore[index]
        np.array([0, 0, 0, -40], np.float32), np.array([1, 1, 1, 0], np.float32)
    )
    obs, _ = env.reset(seed=0)
    assert obs["feedback"].tolist() == [0, 0, 0, 0]
    for action in (-1, 0, 1):  # the space starts at -1
        obs, reward, *_ = env.step(np.int64(action))
        np.testing.assert_array_equal(
            obs["feedback"], np.append(np.eye(3)[action + 1], reward).astype(np.float32)
        )
        assert obs["feedback"].dtype == np.float32


def test_a_continuous_action_is_flattened_and_limited_to_its_space() -> None:
    """The bounds always hold the zeros of an episode's start."""
    env = Feedback(Valve())
    box = env.observation_space["feedback"]  # type: ignore[index]
    assert box == spaces.Box(np.array([-1, 0, -2], np.float32), np.array([3, 2, 0], np.float32))
    obs, _ = env.reset(seed=0)
    assert obs in env.observation_space
    for action, felt in (
        ([[0.25, 1.0]], [0.25, 1.0, -1.5]),
        ([[9.0, 9.0]], [3.0, 2.0, -1.5]),
        ([[-9.0, 1.0]], [-1.0, 1.0, -1.5]),
    ):
        obs, *_ = env.step(np.array(action, np.float32))
        assert obs["feedback"].tolist() == felt
        assert obs in env.observation_space


def test_the_feedback_is_the_action_that_the_world_applied() -> None:
    """Also where the space's lower limit is above zero: an action below it counts as the limit."""
    env = Feedback(Valve())
    env.reset(seed=0)
    obs, *_ = env.step(np.array([[0.0, 0.1]], np.float32))
    assert obs["feedback"][1] == 0.5


def test_a_reward_outside_its_range_is_felt_at_the_limit() -> None:
    class Harsh(Valve):
        def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
            observation, _, *rest = super().step(action)
            return observation, -5.0, *rest

    env = Feedback(Harsh())
    env.reset(seed=0)
    obs, reward, *_ = env.step(np.array([[0.0, 1.0]], np.float32))
    assert reward == -5.0
    assert obs["feedback"].tolist() == [0.0, 1.0, -2.0]
    assert obs in env.observation_space


def test_unknown_bounds_of_the_reward_are_infinite() -> None:
    box = feedback_space(spaces.Discrete(2), (-np.inf, np.inf))
    assert box.low.tolist() == [0, 0, -np.inf]
    assert box.high.tolist() == [1, 1, np.inf]


@pytest.mark.parametrize("world", [Walk, Valve, PlantEnv, ImageStreamEnv])
def test_everything_else_passes_through(world: Any) -> None:
    """Tasks, reference, the other modalities, rewards and infos are the world's own; other wrappers
    may stand between.
    """
    plain, wrapped = world(), Feedback(TimeLimit(world(), 100))
    assert wrapped.tasks == plain.tasks
    assert wrapped.reward_range == plain.reward_range
    np.testing.assert_array_equal(wrapped.reference(1), plain.reference(1))
    assert set(wrapped.observation_space) == {*plain.observation_space, "feedback"}
    first, second = (env.reset(seed=3, options={"task": 1}) for env in (plain, wrapped))
    plain.action_space.seed(0)
    for _ in range(LENGTH - 1):
        assert {key: value.tobytes() for key, value in first[0].items()} == {
            key: value.tobytes() for key, value in second[0].items() if key != "feedback"
        }
        assert first[1:] == second[1:]
        action = plain.action_space.sample()
        first, second = plain.step(action), wrapped.step(action)  # type: ignore[assignment]


@pytest.mark.parametrize("world", [Walk, Valve])
def test_a_vector_feels_what_its_copies_feel(world: Any) -> None:
    """To the bit, through the ends of episodes: the last feedback is in `final_obs`, the next
    episode starts with zeros.
    """
    vector = VectorFeedback(SyncTaskVectorEnv([world] * 3))
    singles = [Feedback(world()) for _ in range(3)]
    assert vector.single_observation_space == singles[0].observation_space
    obs, _ = vector.reset(seed=5, options={"task": 2})
    for i, env in enumerate(singles):
        env.reset(seed=5 + i, options={"task": 2})
    vector.action_space.seed(0)
    for step in range(1, 2 * LENGTH + 1):
        actions = vector.action_space.sample()
        obs, _, _, truncated, info = vector.step(actions)
        for i, env in enumerate(singles):
            expected, *_ = env.step(actions[i])
            if step % LENGTH == 0:
                assert truncated.all()
                assert expected["feedback"].tobytes() == info["final_obs"][i]["feedback"].tobytes()
                expected, _ = env.reset()
            for name in expected:
                np.testing.assert_array_equal(obs[name][i], expected[name])


def test_a_masked_reset_of_a_vector_forgets_in_the_mask_only() -> None:
    env = VectorFeedback(PlantVectorEnv(3))
    env.reset(seed=0)
    before, *_ = env.step(np.ones((3, 3), np.float32))
    after, _ = env.reset(options={"reset_mask": np.array([True, False, True])})
    assert not after["feedback"][[0, 2]].any()
    assert before["feedback"][1].tobytes() == after["feedback"][1].tobytes()


class Flat(Walk):
    observation_space = spaces.Box(-1.0, 1.0, (1,))


class Loud(Walk):
    observation_space = spaces.Dict({"feedback": spaces.Box(-1.0, 1.0, (1,))})


class Many(Walk):
    action_space = spaces.MultiDiscrete([2, 2])


@pytest.mark.parametrize(
    "wrap", [Feedback, lambda env: VectorFeedback(SyncTaskVectorEnv([lambda: env]))]
)
@pytest.mark.parametrize(
    ("world", "line"),
    [
        (
            Flat,
            (
                r"^the observation space is Box\(-1\.0, 1\.0, \(1,\), float32\); feedback needs a "
                "Dict without 'feedback'$"
            ),
        ),
        (
            Loud,
            (
                r"^the observation space is Dict\('feedback': Box\(-1\.0, 1\.0, \(1,\), "
                r"float32\)\); feedback needs a Dict without 'feedback'$"
            ),
        ),
        (Many, r"^the action space is MultiDiscrete\(\[2 2\]\); feedback needs a Box or Discrete$"),
    ],
)
def test_a_world_that_cannot_have_feedback_is_refused(wrap: Any, world: Any, line: str) -> None:
    with pytest.raises(ValueError, match=line):
        wrap(world())


def test_next_step_autoreset_is_refused() -> None:
    """There, an episode's first observation follows an action that was ignored."""
    env: Any = SyncVectorEnv([Walk, Walk], autoreset_mode=AutoresetMode.NEXT_STEP)
    with pytest.raises(
        ValueError,
        match=r"^autoreset_mode is AutoresetMode\.NEXT_STEP; feedback needs SameStep or Disabled$",
    ):
        VectorFeedback(env)
    with pytest.raises(
        ValueError, match=r"^autoreset_mode is NextStep; choose SameStep or Disabled$"
    ):
        PlantVectorEnv(autoreset_mode=AutoresetMode.NEXT_STEP)


def test_a_world_without_tasks_is_refused() -> None:
    with pytest.raises(AttributeError, match=r"tasks"):
        Feedback(gym.make("CartPole-v1"))
