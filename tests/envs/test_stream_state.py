"""A stream is a function of its seed: for any number of copies and workers, resumed anywhere."""

import pickle
from typing import Any

import gymnasium as gym
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_helpers import infos, stream

from everloop.envs import PRESETS, ImageStreamEnv, ImageStreamVectorEnv, Rotated

HARD: Any = {"examples": 60, "mixture": {**PRESETS["hard"], "gradual": 0.5}}


def trajectory(env: Any, steps: int) -> list[bytes]:
    """All that `steps` steps give, as bytes."""
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
def test_workers_change_nothing(copies: int, workers: int, task: int, seed: int) -> None:
    plain, prepared = stream(copies, **HARD), stream(copies, workers=workers, **HARD)
    for env in (plain, prepared):
        env.reset(seed=seed, options={"task": task})
    assert trajectory(plain, 40) == trajectory(prepared, 40)
    for env in (plain, prepared):
        env.reset(options={"task": (task + 1) % 3})
    assert trajectory(plain, 10) == trajectory(prepared, 10)
    prepared.close()


@given(copies=st.integers(1, 6), seed=st.integers(0, 9))
@settings(deadline=None, max_examples=25)
def test_the_number_of_copies_only_cuts_the_chain(copies: int, seed: int) -> None:
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
def test_a_resumed_stream_goes_on_as_if_never_stopped(
    before: int, switches: list[tuple[int, list[bool]]], workers: int
) -> None:
    """At any step, after any switches, also in mid-episode, and in a stream that was somewhere
    else.
    """
    env = stream(3, episode_length=7, seed=1, workers=workers, **HARD)
    for task, mask in switches:
        trajectory(env, 3)
        env.reset(
            options={"task": task, "reset_mask": np.array(mask)} if any(mask) else {"task": task}
        )
    trajectory(env, before)
    state = pickle.loads(pickle.dumps(env.state_dict()))
    other = stream(3, episode_length=7, seed=99, workers=workers, **HARD)
    trajectory(other, 5)
    other.load_state_dict(state)
    assert trajectory(env, 50) == trajectory(other, 50)
    for one in (env, other):
        one.reset(options={"task": 0})
    assert trajectory(env, 50) == trajectory(other, 50)
    env.close(), other.close()


def test_a_state_is_a_copy() -> None:
    env = stream(3, seed=0)
    state = env.state_dict()
    first = trajectory(env, 20)
    env.load_state_dict(state)
    assert trajectory(env, 20) == first


def test_a_single_copy_resumes_too() -> None:
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


def test_workers_show_what_a_task_sees() -> None:
    turned = [ImageStreamVectorEnv(4, task_split=Rotated(4), workers=workers) for workers in (0, 2)]
    for env in turned:
        env.reset(seed=0, options={"task": 3})
    assert trajectory(turned[0], 30) == trajectory(turned[1], 30)
    turned[1].close()


def test_an_unseeded_stream_is_seeded_by_chance() -> None:
    orders = []
    for _ in range(3):
        env = stream(1, 60)
        env.reset()
        orders.append(tuple(infos(env, 12)["index"]))
    assert len(set(orders)) == 3
