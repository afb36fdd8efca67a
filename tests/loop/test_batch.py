"""Batches can be cut, stored and joined without loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from everloop.loop import Batch
from everloop.loop.batch import subsample, to_tensor
from everloop.loop.memory import Store


def numbered_batch(T: int, B: int, full: bool = True, seed: int = 0) -> Batch:
    """A batch in which step t of example b holds the number 100 t + b."""
    number = 100 * torch.arange(T)[:, None] + torch.arange(B)
    obs = {
        "image": (number % 256).to(torch.uint8)[..., None, None, None].expand(T, B, 2, 3, 1),
        "x": number[..., None].float(),
    }
    start = torch.rand(T, B, generator=torch.Generator().manual_seed(seed)) < 0.3
    extra = (
        {"target": number, "action": number[..., None].double(), "task": torch.arange(B)}
        if full
        else {}
    )
    return Batch(obs, start, **extra)


def assert_equal(a: Batch, b: Batch) -> None:
    assert set(a.obs) == set(b.obs)
    pairs = [(a.obs[name], b.obs[name]) for name in a.obs]
    for x, y in [
        *pairs,
        (a.start, b.start),
        (a.target, b.target),
        (a.action, b.action),
        (a.task, b.task),
    ]:
        assert (x is None) == (y is None)
        if x is not None and y is not None:
            assert x.dtype == y.dtype
            assert torch.equal(x, y)


lengths = st.integers(1, 4)
examples = st.integers(1, 6)


@settings(deadline=None, max_examples=30)
@given(T=lengths, B=examples, full=st.booleans())
def test_items_equal_the_batch_with_the_example_axis_first(T: int, B: int, full: bool) -> None:
    batch = numbered_batch(T, B, full)
    items = batch.to_items()
    assert all(len(value) == B for value in items.values())
    assert set(items) == {"obs.image", "obs.x", "start"} | (
        {"target", "action", "task"} if full else set()
    )
    np.testing.assert_array_equal(items["obs.x"][B - 1, :, 0], 100 * np.arange(T) + B - 1)
    assert_equal(Batch.from_items(items, torch.device("cpu")), batch)


@settings(deadline=None, max_examples=50)
@given(T=lengths, B=examples, parts=st.integers(1, 3), seed=st.integers(0, 100))
def test_sequences_keep_every_step_in_order_and_set_start(
    T: int, B: int, parts: int, seed: int
) -> None:
    batch = numbered_batch(T * parts, B, seed=seed)
    cut = batch.sequences(T)
    assert (cut.length, len(cut)) == (T, B * parts)
    assert cut.target is not None
    assert cut.task is not None
    assert sorted(cut.target.flatten().tolist()) == sorted(batch.target.flatten().tolist())  # type: ignore[union-attr]
    for e in range(len(cut)):
        numbers = cut.target[:, e].tolist()
        b, first = numbers[0] % 100, numbers[0] // 100
        assert first % T == 0
        assert numbers == [100 * (first + t) + b for t in range(T)]
        assert cut.obs["x"][:, e, 0].tolist() == numbers
        assert cut.obs["image"][:, e, 1, 2, 0].tolist() == [n % 256 for n in numbers]
        assert cut.action is not None
        assert cut.action[:, e, 0].tolist() == numbers
        assert int(cut.task[e]) == b
        assert cut.start[:, e].tolist() == [True, *batch.start[first + 1 : first + T, b].tolist()]


def test_sequences_do_not_change_the_batch() -> None:
    batch = numbered_batch(4, 2)
    start = batch.start.clone()
    batch.sequences(2)
    assert torch.equal(batch.start, start)


@pytest.mark.parametrize("length", [3, 5, 8, 0])
def test_the_sequence_length_must_divide_the_steps(length: int) -> None:
    with pytest.raises(
        ValueError, match=f"sequence length is {length}; it must divide the 4 steps"
    ):
        numbered_batch(4, 2).sequences(length)


@settings(deadline=None, max_examples=30)
@given(T=lengths, B=examples, size=st.integers(1, 8))
def test_split_gives_all_examples_in_order(T: int, B: int, size: int) -> None:
    batch = numbered_batch(T, B)
    parts = list(batch.split(size))
    assert [len(part) for part in parts] == [size] * (B // size) + [B % size] * (B % size > 0)
    assert torch.equal(torch.cat([part.target for part in parts], 1), batch.target)  # type: ignore[misc, arg-type]
    assert torch.equal(torch.cat([part.task for part in parts]), batch.task)  # type: ignore[misc, arg-type]


@pytest.mark.parametrize(
    "which",
    [slice(1, 3), torch.tensor([1, 2]), torch.tensor([False, True, True, False])],
    ids=["slice", "index", "mask"],
)
def test_examples_are_selected_in_every_field(which: object) -> None:
    batch = numbered_batch(3, 4)
    expected = Batch(
        {name: value[:, 1:3] for name, value in batch.obs.items()},
        batch.start[:, 1:3],
        batch.target[:, 1:3],  # type: ignore[index]
        batch.action[:, 1:3],  # type: ignore[index]
        batch.task[1:3],  # type: ignore[index]
    )
    assert_equal(batch[which], expected)


@settings(deadline=None, max_examples=100)
@given(sizes=st.lists(st.integers(0, 30), min_size=1, max_size=4), count=st.integers(1, 90))
def test_a_subsample_takes_one_example_from_each_equal_part(sizes: list[int], count: int) -> None:
    batches = [
        numbered_batch(2, sum(sizes))[sum(sizes[:i]) : sum(sizes[: i + 1])]
        for i in range(len(sizes))
    ]
    taken = [int(b) for batch in subsample(batches, count) for b in batch.task]  # type: ignore[union-attr]
    total = sum(sizes)
    assert taken == sorted(set(taken))
    assert len(taken) == min(count, total)
    if total > count:
        assert all(i * total // count <= b < (i + 1) * total // count for i, b in enumerate(taken))


@pytest.mark.parametrize("count", [64, 128, 512, 1000])
@pytest.mark.parametrize("copies", [1, 4, 16, 32])
def test_a_subsample_covers_all_steps_and_all_copies(copies: int, count: int) -> None:
    """Examples are ordered by step, so the first ones would cover only the first steps."""
    steps = 4096 // copies
    cut = numbered_batch(steps, copies).sequences(1)
    (taken,) = subsample([cut], count)
    step, copy = taken.target[0] // 100, taken.task  # type: ignore[index]
    for quarter in range(4):
        share = float(
            ((step >= quarter * steps / 4) & (step < (quarter + 1) * steps / 4)).double().mean()
        )
        assert share == pytest.approx(0.25, abs=0.02)
    found = torch.bincount(copy, minlength=copies) / count * copies  # type: ignore[arg-type]
    assert 0.5 <= float(found.min()) <= float(found.max()) <= 1.5


@settings(deadline=None, max_examples=20)
@given(T=lengths, B=examples, seed=st.integers(0, 100))
def test_bfloat16_is_stored_bit_for_bit(T: int, B: int, seed: int) -> None:
    """numpy has no bfloat16, but a store returns it unchanged."""
    x = torch.randn(T, B, 3, generator=torch.Generator().manual_seed(seed)).bfloat16()
    batch = Batch(
        {"x": x},
        torch.ones(T, B, dtype=torch.bool),
        target=torch.zeros(T, B, dtype=torch.long),
        output=-x,
    )
    store = Store(B)
    store.write(np.arange(B)[::-1], batch.to_items())
    restored = Batch.from_items(store.read(np.arange(B)[::-1]), torch.device("cpu"))
    assert_equal(restored, batch)
    assert restored.output is not None
    assert torch.equal(restored.output, -x)
    assert store.items["obs.x"].nbytes == 2 * x.numel()


def test_arrays_of_any_layout_become_equal_tensors() -> None:
    array = np.arange(12, dtype=np.uint8).reshape(3, 4)[:, ::-1]
    tensor = to_tensor(array, torch.device("cpu"))
    assert tensor.dtype == torch.uint8
    assert tensor.tolist() == array.tolist()
