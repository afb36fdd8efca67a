"""Changes of what is seen and of what actions do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from everloop.envs import Tokens
from everloop.envs.changes import ActionChange, ObservationChange

SPACE = spaces.Dict(
    x=spaces.Box(-1, 1, (4,), np.float32),
    picture=spaces.Box(0, 255, (2, 3, 1), np.uint8),
    words=Tokens(5, 2),
)
SEEN = {
    "x": np.array([0.0, 1.0, 2.0, 3.0], np.float32),
    "picture": np.arange(6, dtype=np.uint8).reshape(2, 3, 1),
    "words": np.array([1, 2], np.int32),
}


def changed(seed: int = 0, **given: Any) -> dict[str, Any]:
    return ObservationChange(given, SPACE)(SEEN, np.random.default_rng(seed))


def test_no_change_is_none() -> None:
    assert changed() is SEEN
    assert ObservationChange({}, SPACE).space is SPACE


def test_vectors_are_permuted_mirrored_scaled_and_shifted_in_this_order() -> None:
    assert changed(scale=2.0, shift=1.0, mirror=True)["x"].tolist() == [1, -1, -3, -5]
    order = np.random.default_rng(7).permutation(4)
    assert changed(permute=7, shift=1.0)["x"].tolist() == (SEEN["x"][order] + 1).tolist()
    assert changed(permute=7)["x"].dtype == np.float32


def test_a_mirrored_picture_has_left_and_right_exchanged() -> None:
    assert changed(mirror=True)["picture"][..., 0].tolist() == [[2, 1, 0], [5, 4, 3]]
    assert changed(scale=2.0, shift=1.0, permute=1)["picture"].tolist() == SEEN["picture"].tolist()


def test_noise_has_the_standard_deviation_asked_for() -> None:
    noisy = np.array([changed(seed, noise=0.5)["x"] - SEEN["x"] for seed in range(2000)])
    assert abs(noisy.mean()) < 0.03
    assert abs(noisy.std() - 0.5) < 0.02
    assert changed(3, noise=0.5)["x"].tolist() == changed(3, noise=0.5)["x"].tolist()
    assert changed(noise=400.0)["picture"].dtype == np.uint8
    assert changed(noise=9.0)["words"].tolist() == [1, 2]


def test_a_changed_observation_is_in_the_changed_space() -> None:
    change = ObservationChange({"shift": 100.0, "noise": 1.0}, SPACE)
    assert change(SEEN, np.random.default_rng(0)) in change.space


def test_actions_are_mirrored_and_permuted() -> None:
    box = spaces.Box(np.array([0.0, -1.0]), np.array([4.0, 1.0]), dtype=np.float64)
    assert ActionChange({"mirror": True}, box)(np.array([1.0, 0.5])).tolist() == [3.0, -0.5]
    choice = spaces.Discrete(4, start=2)
    mirrored = ActionChange({"mirror": True}, choice)
    assert [mirrored(a) for a in (2, 3, 4, 5)] == [5, 4, 3, 2]
    permuted = ActionChange({"permute": 3}, choice)
    found = [permuted(a) for a in (2, 3, 4, 5)]
    assert sorted(found) == [2, 3, 4, 5]
    assert found == [int(a) + 2 for a in np.random.default_rng(3).permutation(4)]


@pytest.mark.parametrize(
    ("make", "given", "message"),
    [
        (ObservationChange, {"gain": 1}, "unknown change 'gain' of the observation; choose one of"),
        (ObservationChange, {"shift": "x"}, "shift of the observation is 'x'; it must be a number"),
        (ObservationChange, {"scale": True}, "scale of the observation is True"),
        (ObservationChange, {"shift": float("nan")}, "shift of the observation is nan"),
        (ObservationChange, {"noise": -1}, "noise of the observation is -1; it must be 0 or more"),
        (ObservationChange, {"permute": 0.5}, "permute of the observation is 0.5; it must be a wh"),
        (ObservationChange, {"mirror": 1}, "mirror of the observation is 1; it must be true or"),
        (ObservationChange, [1], "the change of the observation is \\[1\\]; write it as"),
    ],
)
def test_a_wrong_change_is_named(make: Any, given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(given, SPACE)


def test_a_change_that_the_actions_do_not_allow_is_named() -> None:
    with pytest.raises(ValueError, match="permute needs Discrete actions"):
        ActionChange({"permute": 1}, spaces.Box(-1, 1, (2,), np.float32))
    with pytest.raises(ValueError, match="mirror needs Discrete actions or a Box with finite"):
        ActionChange({"mirror": True}, spaces.Box(-np.inf, np.inf, (2,), np.float32))
