"""A stream depends only on its seed: not on copies, workers, or interruptions."""

import pickle
from typing import Any

import gymnasium as gym
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_helpers import infos, stream, switch

from everloop.envs import PRESETS, ImageStreamEnv, ImageStreamVectorEnv, Rotated

HARD: Any = {"examples": 60, "mixture": {**PRESETS["hard"], "gradual": 0.5}}


def trajectory(env: Any, steps: int) -> list[bytes]:
    """Return all that `steps` steps return, as bytes."""
    seen = []
    for step in range(steps):
        obs, reward, *_, info = env.step(np.full(env.num_envs, step % 6))
        seen += [
            obs["image"].tobytes(),
            reward.tobytes(),
            *(info[key].tobytes() for key in ("label", "index", "origin", "ood", "task")),
        ]
    return seen


@given(
    copies=st.integers(1, 7),
    workers=st.integers(1, 3),
    task=st.integers(0, 2),
    seed=st.integers(0, 9),
)
@settings(deadline=None, max_examples=25)
def test_a_stream_is_the_same_with_and_without_workers(
    copies: int, workers: int, task: int, seed: int
) -> None:
    plain, prefetched = stream(copies, **HARD), stream(copies, workers=workers, **HARD)
    for env in (plain, prefetched):
        env.reset(seed=seed, options={"task": task})
    assert trajectory(plain, 40) == trajectory(prefetched, 40)
    for env in (plain, prefetched):
        env.reset(options={"task": (task + 1) % 3})
    assert trajectory(plain, 10) == trajectory(prefetched, 10)
    prefetched.close()


@given(copies=st.integers(1, 6), seed=st.integers(0, 9))
@settings(deadline=None, max_examples=25)
def test_infos_are_the_same_for_any_number_of_copies(copies: int, seed: int) -> None:
    one, many = stream(1, seed=seed, **HARD), stream(copies, seed=seed, **HARD)
    a, b = infos(one, 120), infos(many, 120 // copies)
    for key in a:
        np.testing.assert_array_equal(a[key][: len(b[key])], b[key])


@given(
    before=st.integers(0, 40),
    switches=st.lists(
        st.tuples(st.integers(0, 2), st.lists(st.booleans(), min_size=3, max_size=3)), max_size=4
    ),
    workers=st.sampled_from([0, 2]),
)
@settings(deadline=None, max_examples=40)
def test_a_restored_stream_continues_as_the_original(
    before: int, switches: list[tuple[int, list[bool]]], workers: int
) -> None:
    """After any steps and switches, also within an episode, in a stream with another past."""
    env = stream(3, episode_length=7, seed=1, workers=workers, **HARD)
    for task, mask in switches:
        trajectory(env, 3)
        switch(env, task, mask)
    trajectory(env, before)
    state = pickle.loads(pickle.dumps(env.state_dict()))
    other = stream(3, episode_length=7, seed=99, workers=workers, **HARD)
    trajectory(other, 5)
    other.load_state_dict(state)
    assert trajectory(env, 50) == trajectory(other, 50)
    for one in (env, other):
        one.reset(options={"task": 0})
    assert trajectory(env, 50) == trajectory(other, 50)
    for one in (env, other):
        one.close()


def test_stepping_does_not_change_a_saved_state() -> None:
    env = stream(3, seed=0)
    state = env.state_dict()
    first = trajectory(env, 20)
    env.load_state_dict(state)
    assert trajectory(env, 20) == first


def test_a_restored_single_environment_continues_as_the_original() -> None:
    a: Any = gym.make("everloop/ImageStream-v0").unwrapped
    b = ImageStreamEnv()
    a.reset(seed=3, options={"task": 2})
    for _ in range(5):
        a.step(0)
    b.load_state_dict(a.state_dict())
    for _ in range(20):
        x, y = a.step(1), b.step(1)
        np.testing.assert_array_equal(x[0]["image"], y[0]["image"])
        assert x[1:] == y[1:]


def test_workers_prepare_images_as_the_task_shows_them() -> None:
    turned = [ImageStreamVectorEnv(4, task_split=Rotated(4), workers=workers) for workers in (0, 2)]
    for env in turned:
        env.reset(seed=0, options={"task": 3})
    assert trajectory(turned[0], 30) == trajectory(turned[1], 30)
    turned[1].close()


def test_unseeded_streams_have_different_orders() -> None:
    orders = []
    for _ in range(3):
        env = stream(1, 60)
        env.reset()
        orders.append(tuple(infos(env, 12)["index"]))
    assert len(set(orders)) == 3
