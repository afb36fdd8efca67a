"""A stream of vectors shows the exact numbers of its examples, and alters them as it says."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stream_helpers import infos

from everloop.contract import modality_kind
from everloop.envs import FeatureStreamVectorEnv, Mixture, SplitClasses, check_task_env
from everloop.envs.corruptions import feature_alterations
from everloop.envs.data import digits, from_features

X = np.random.default_rng(1).normal([0.0, 100.0, -5.0], [1.0, 30.0, 0.01], (300, 3))
Y = np.array(["owl", "ant", "bee"])[np.arange(300) % 3]


def test_each_example_is_shown_as_it_is_in_the_order_of_the_classes() -> None:
    world: Any = FeatureStreamVectorEnv(4, from_features(X, Y, X, Y), SplitClasses(1))
    assert [task.name for task in world.tasks] == ["ant", "bee", "owl"]
    assert world.single_action_space.n == 3
    for task, name in enumerate(["ant", "bee", "owl"]):
        obs, _ = world.reset(seed=0, options={"task": task})
        for _ in range(30):
            shown = obs["features"]
            obs, *_, info = world.step(np.full(4, task))
            np.testing.assert_array_equal(shown, X[info["index"]].astype(np.float32))
            assert (Y[info["index"]] == name).all()
            assert (info["label"] == task).all()


def test_the_space_says_that_the_modality_holds_numbers() -> None:
    world: Any = FeatureStreamVectorEnv(1, from_features(X, Y), SplitClasses(1))
    space = world.single_observation_space["features"]
    assert modality_kind("features", space) == "vector"
    assert (space.shape, space.dtype) == ((3,), np.float32)


def test_a_stream_without_arguments_shows_the_digits_as_numbers() -> None:
    env = gym.make("everloop/FeatureStream-v0")
    check_task_env(env, steps=5)
    obs, _ = env.reset(seed=0)
    *_, info = env.step(0)
    pixels = digits()[0].inputs[info["index"]]
    np.testing.assert_array_equal(obs["features"], pixels.ravel().astype(np.float32))


@pytest.mark.parametrize("name", ["noise", "gaussian-noise", "masked"])
def test_an_alteration_has_the_scale_of_each_number(name: str) -> None:
    mean, std = X.mean(0), X.std(0)
    alter, rng = feature_alterations(mean, std)[name], np.random.default_rng(0)
    example = X[7].astype(np.float32)
    altered = np.array([alter(example, rng) for _ in range(3000)])
    assert altered.dtype == np.float32
    if name == "masked":
        hit = altered != example
        assert (hit.sum(1) == 1).all()
        assert (abs(hit.mean(0) - 1 / 3) < 0.04).all()
        np.testing.assert_array_equal(
            altered[hit], np.tile(mean.astype(np.float32), (3000, 1))[hit]
        )
        return
    centre = mean if name == "noise" else example
    assert (abs(altered.mean(0) - centre) < 0.1 * std).all()
    np.testing.assert_allclose(altered.std(0), std, rtol=0.1)


def test_altered_examples_are_marked() -> None:
    world: Any = FeatureStreamVectorEnv(
        4, from_features(X, Y, X, Y), SplitClasses(1), mixture=Mixture(ood_ratio=0.4)
    )
    obs, _ = world.reset(seed=0)
    for _ in range(20):
        shown = obs["features"]
        obs, *_, info = world.step(np.zeros(4, int))
        differs = (shown != X[info["index"]].astype(np.float32)).any(1)
        np.testing.assert_array_equal(differs, info["ood"])
    assert abs(infos(world, 40)["ood"].mean() - 0.4) < 0.15


def test_other_inputs_are_refused() -> None:
    with pytest.raises(
        ValueError,
        match=(
            r"^train features are uint8 of shape \(1442, 8, 8, 1\); they must be float32 "
            r"\(N, D\)$"
        ),
    ):
        FeatureStreamVectorEnv(1, digits())
