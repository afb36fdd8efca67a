"""Samples of what a learner has been shown hold each example once, and only of their own task."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loop_helpers import control_learner, mlp, plant, stream

from everloop.envs import TaskVectorWrapper
from everloop.loop import Batch, Model, Strategy, SupervisedLearner
from everloop.loop.learners.shown import CHUNK, REPEATED, Recent, ShownRows

TASKS, ROWS = 3, 12

step = st.lists(
    st.tuples(st.integers(0, ROWS - 1), st.integers(0, TASKS - 1), st.booleans(), st.booleans()),
    min_size=4,
    max_size=4,
)


def batch_of(task: int, rows: Any) -> Batch:
    """Examples whose only observation is their number."""
    rows = torch.as_tensor(np.asarray(rows))
    ids = torch.full((len(rows),), task)
    return Batch({"x": rows[None]}, torch.ones(1, len(rows), dtype=torch.bool), task=ids)


def rows_of(batches: Any) -> list[int]:
    return [row for batch in batches for row in batch.obs["x"][0].tolist()]


@given(st.lists(step, max_size=8), st.sampled_from([None, 1, 5]))
def test_rows_are_sampled_without_repeats_leaks_and_altered_examples(
    steps: list[Any], limit: int | None
) -> None:
    shown = ShownRows(batch_of, limit)
    expected: list[set[int]] = [set() for _ in range(TASKS)]
    for examples in steps:
        index, origin, leaked, ood = (np.array(column) for column in zip(*examples, strict=True))
        shown.add(
            batch_of(0, index), {"index": index, "origin": origin, "leaked": leaked, "ood": ood}
        )
        for row, task, is_leaked, is_ood in examples:
            if not is_leaked and not is_ood:
                expected[task].add(row)
    for task in range(TASKS):
        sample = rows_of(shown.sample(task, seed=1))
        assert len(sample) == len(set(sample))
        assert set(sample) <= expected[task]
        assert len(sample) == min(len(expected[task]), limit or ROWS)
        other = ShownRows(batch_of, limit)
        other.load_state_dict(shown.state_dict())
        assert rows_of(other.sample(task, seed=1)) == sample
    shown.clear()
    assert not shown.sample(0, seed=1)


def test_the_memory_of_rows_does_not_grow_with_the_number_of_passes() -> None:
    shown = ShownRows(batch_of)
    rows, zeros = np.arange(200), np.zeros(200, bool)
    info = {"index": rows, "origin": rows % TASKS, "leaked": zeros, "ood": zeros}
    sizes = []
    for _ in range(40):
        for _ in range(CHUNK):
            shown.add(batch_of(0, rows), info)
        sizes.append(shown.state_dict()["rows"].nbytes)
    assert max(sizes[20:]) <= max(sizes[:20]) <= (2 * 200 + REPEATED + CHUNK * 200) * 16
    for task in range(TASKS):
        assert set(rows_of(shown.sample(task, seed=0))) == set(rows[rows % TASKS == task].tolist())


def test_a_sample_of_rows_is_uniform() -> None:
    """With 2 of 6 rows, each row is drawn in a third of the samples."""
    shown = ShownRows(batch_of, 2)
    rows, zeros = np.arange(6), np.zeros(6, bool)
    shown.add(batch_of(0, rows), {"index": rows, "origin": 0 * rows, "leaked": zeros, "ood": zeros})
    drawn = np.bincount([row for seed in range(600) for row in rows_of(shown.sample(0, seed))])
    assert np.abs(drawn / 600 - 1 / 3).max() < 0.1


@given(st.lists(st.integers(1, 7), max_size=9), st.sampled_from([1, 4, 10]))
def test_the_latest_examples_of_each_task_are_kept(sizes: list[int], limit: int) -> None:
    recent = Recent(limit)
    rows = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1]) if sizes else []
    for number, part in enumerate(rows):
        recent.add(batch_of(number % 2, part), {})
    for task in (0, 1):
        latest = [row for part in rows[task::2] for row in part.tolist()][-limit:]
        sample = rows_of(recent.sample(task, seed=3))
        assert sorted(sample) == latest
        other = Recent(limit)
        other.load_state_dict(recent.state_dict())
        assert rows_of(other.sample(task, seed=3)) == sample


def test_recent_experience_keeps_actions_and_survives_the_next_rollout() -> None:
    """PPO's rollout buffer is filled again; the sample of the first rollout does not change."""
    learner = control_learner(world=plant(4, horizon=5))
    actions: list[list[list[float]]] = []

    class Actions(Strategy):
        def observe(self, batch: Batch, model: Model) -> None:
            assert batch.action is not None
            actions.append(batch.action[0].tolist())

    learner.attach([Actions()])
    learner.shown.limit = 32
    learner.begin([1], 128)
    for rollout in range(2):
        learner.advance()
        sample = Batch.pool(learner.shown.sample(1, seed=0))
        assert sample.action is not None
        assert sorted(sample.action[0].tolist()) == sorted(actions[rollout])
        if rollout == 0:
            first, kept = sample, sample.obs["sensor_0"].clone()
    assert torch.equal(first.obs["sensor_0"], kept)
    assert learner.shown.sample(0, seed=0) == []


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_stream_shows_its_examples_again_and_a_wrapped_one_keeps_the_latest(
    wrapped: bool,
) -> None:
    """Only a wrapper knows what it changes, so its examples are kept as they were shown."""

    class Inverted(TaskVectorWrapper):
        def reset(self, **kwargs: Any) -> Any:
            obs, info = self.env.reset(**kwargs)
            return {"image": 255 - obs["image"]}, info

        def step(self, actions: Any) -> Any:
            obs, *rest = self.env.step(actions)
            return {"image": 255 - obs["image"]}, *rest

    world: Any = Inverted(stream(4)) if wrapped else stream(4)
    learner = SupervisedLearner(mlp(), world)
    assert isinstance(learner.shown, Recent if wrapped else ShownRows)
    learner.learn([1], 40)
    sample = Batch.pool(learner.shown.sample(1, seed=0))
    assert len(sample) == 40
    assert sample.target is not None
    assert set(sample.target.flatten().tolist()) == {2, 3}
    # a digit's corner is black, which the wrapper turns white
    assert (sample.obs["image"][0, :, 0, 0] == (255 if wrapped else 0)).all()
