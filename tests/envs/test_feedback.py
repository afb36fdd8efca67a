"""The modality "feedback" holds the last action and reward, and zeros when an episode starts."""

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
    """Walk with a 1x2 matrix of continuous actions, of which one cannot be zero."""

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


@pytest.mark.parametrize(
    ("space", "action", "expected"),
    [
        (spaces.MultiDiscrete([2, 3]), [1, 0], [0, 1, 1, 0, 0]),
        (spaces.MultiDiscrete([2, 3], start=[5, -1]), [5, 1], [1, 0, 0, 0, 1]),
        (spaces.MultiDiscrete([[2], [2]]), [[0], [1]], [1, 0, 0, 1]),
        (spaces.MultiBinary(3), [1, 0, 1], [1, 0, 1]),
    ],
    ids=str,
)
def test_each_choice_is_one_hot_and_each_bit_itself(space: Any, action: Any, expected: Any) -> None:
    class Chooser(Walk):
        action_space = space

        def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
            assert action in space
            return super().step(0)

    action = np.array(action, space.dtype)
    single, vector = Feedback(Chooser()), VectorFeedback(SyncTaskVectorEnv([Chooser] * 2))
    single.reset(seed=0)
    vector.reset(seed=0)
    obs, reward, *_ = single.step(action)
    assert obs in single.observation_space
    np.testing.assert_array_equal(obs["feedback"], np.append(expected, reward).astype(np.float32))
    obs, rewards, *_ = vector.step(np.stack([action, action]))
    np.testing.assert_array_equal(obs["feedback"][:, :-1], [expected] * 2)
    np.testing.assert_array_equal(obs["feedback"][:, -1], rewards.astype(np.float32))


def test_a_continuous_action_is_flattened_and_clipped_to_its_space() -> None:
    """The bounds include 0, with which an episode starts."""
    env = Feedback(Valve())
    box = env.observation_space["feedback"]  # type: ignore[index]
    assert box == spaces.Box(np.array([-1, 0, -2], np.float32), np.array([3, 2, 0], np.float32))
    obs, _ = env.reset(seed=0)
    assert obs in env.observation_space
    for action, expected in (
        ([[0.25, 1.0]], [0.25, 1.0, -1.5]),
        ([[9.0, 9.0]], [3.0, 2.0, -1.5]),
        ([[-9.0, 1.0]], [-1.0, 1.0, -1.5]),
    ):
        obs, *_ = env.step(np.array(action, np.float32))
        assert obs["feedback"].tolist() == expected
        assert obs in env.observation_space


def test_an_action_below_its_limits_is_clipped_in_the_feedback() -> None:
    """An action below the lower limit 0.5 is 0.5, although the feedback's bounds include 0."""
    env = Feedback(Valve())
    env.reset(seed=0)
    obs, *_ = env.step(np.array([[0.0, 0.1]], np.float32))
    assert obs["feedback"][1] == 0.5


def test_a_reward_outside_its_range_is_clipped_in_the_feedback() -> None:
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


def test_an_unbounded_reward_has_infinite_bounds_in_the_feedback() -> None:
    box = feedback_space(spaces.Discrete(2), (-np.inf, np.inf))
    assert box.low.tolist() == [0, 0, -np.inf]
    assert box.high.tolist() == [1, 1, np.inf]


@pytest.mark.parametrize("world", [Walk, Valve, PlantEnv, ImageStreamEnv])
def test_the_wrapper_adds_only_the_feedback(world: Any) -> None:
    """Everything else is the world's own, also through another wrapper."""
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
def test_a_vectors_feedback_is_that_of_its_copies(world: Any) -> None:
    """Also at an episode's end: `final_obs` has the last feedback, the next episode zeros."""
    vector = VectorFeedback(SyncTaskVectorEnv([world] * 3))
    singles = [Feedback(world()) for _ in range(3)]
    assert vector.single_observation_space == singles[0].observation_space
    obs, _ = vector.reset(seed=[5, 6, 7], options={"task": 2})  # type: ignore[arg-type]
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


def test_a_masked_reset_clears_the_feedback_only_in_the_mask() -> None:
    env = VectorFeedback(PlantVectorEnv(3))
    env.reset(seed=0)
    before, *_ = env.step(np.ones((3, 3), np.float32))
    after, _ = env.reset(options={"reset_mask": np.array([True, False, True])})
    assert not after["feedback"][[0, 2]].any()
    assert before["feedback"][1].tobytes() == after["feedback"][1].tobytes()


class BoxObservation(Walk):
    observation_space = spaces.Box(-1.0, 1.0, (1,))


class OwnFeedback(Walk):
    observation_space = spaces.Dict({"feedback": spaces.Box(-1.0, 1.0, (1,))})


class ManyActions(Walk):
    action_space = spaces.Tuple([spaces.Discrete(2)])


@pytest.mark.parametrize(
    "wrap", [Feedback, lambda env: VectorFeedback(SyncTaskVectorEnv([lambda: env]))]
)
@pytest.mark.parametrize(
    ("world", "line"),
    [
        (
            BoxObservation,
            (
                r"^the observation space is Box\(-1\.0, 1\.0, \(1,\), float32\); feedback needs a "
                "Dict without 'feedback'$"
            ),
        ),
        (
            OwnFeedback,
            (
                r"^the observation space is Dict\('feedback': Box\(-1\.0, 1\.0, \(1,\), "
                r"float32\)\); feedback needs a Dict without 'feedback'$"
            ),
        ),
        (
            ManyActions,
            r"^the action space is Tuple\(Discrete\(2\)\); feedback needs a Box, Discrete, Multi",
        ),
    ],
)
def test_a_world_that_cannot_have_feedback_is_refused(wrap: Any, world: Any, line: str) -> None:
    with pytest.raises(ValueError, match=line):
        wrap(world())


def test_next_step_autoreset_is_refused() -> None:
    """With it, the action before an episode's first observation is ignored."""
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
    with pytest.raises(AttributeError, match="tasks"):
        Feedback(gym.make("CartPole-v1"))
