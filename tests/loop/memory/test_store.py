"""The store under all replay memories: arrays in memory or on disk."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from loop_helpers import vector_batch

from everloop.loop import MEMORIES, Batch, Memory
from everloop.loop.memory import Store, store

VALUES: dict[str, Callable[[npt.NDArray[np.int64]], npt.NDArray[Any]]] = {
    "uint8": lambda n: np.repeat(n[:, None], 6, 1).reshape(-1, 2, 3).astype(np.uint8),
    "bool": lambda n: n % 2 == 0,
    "float32": lambda n: (n[:, None] / np.float32(3.0)).astype(np.float32),
    "int64": lambda n: n * 2**40,
}


@pytest.mark.parametrize("kind", MEMORIES.values(), ids=MEMORIES)
def test_a_memory_on_disk_equals_one_in_ram(
    kind: type[Memory], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values, dtypes, draws and states are equal over many writes.

    A memory on disk also continues from the state of one in RAM, and vice versa.
    """

    def write(memory: Memory, first: int) -> None:
        numbers = np.arange(first, first + 10)
        kept, rows = memory.reserve(10, numbers % 3, np.sin(numbers))
        memory.write(rows, {name: value(numbers[kept]) for name, value in VALUES.items()})

    def filled(first: int, state: dict[str, Any] | None = None) -> Memory:
        memory = kind(7, seed=3)
        if state is not None:
            memory.load_state_dict(state)
        for begin in range(first, first + 40, 10):
            write(memory, begin)
        return memory

    in_ram = filled(0)
    further_in_ram = filled(40, in_ram.state_dict())
    monkeypatch.setattr(store, "IN_MEMORY", 6)
    on_disk = filled(0)
    further_on_disk = filled(40, in_ram.state_dict())
    monkeypatch.undo()
    back_in_ram = filled(40, on_disk.state_dict())
    rows = np.array([6, 0, 3, 3])
    for name in VALUES:
        assert isinstance(on_disk.items[name], np.memmap)
        assert isinstance(further_on_disk.items[name], np.memmap)
        assert not isinstance(back_in_ram.items[name], np.memmap)
        assert on_disk.items[name].dtype == on_disk.read(rows)[name].dtype == np.dtype(name)
        np.testing.assert_array_equal(on_disk.read(rows)[name], in_ram.read(rows)[name])
        np.testing.assert_array_equal(further_on_disk.items[name], further_in_ram.items[name])
        np.testing.assert_array_equal(back_in_ram.items[name], further_in_ram.items[name])
    assert on_disk.draw(20).tolist() == in_ram.draw(20).tolist()


def test_reading_from_disk_gives_a_copy_as_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "IN_MEMORY", 0)
    batch, kept = vector_batch(4, 3, 2), Store(4)
    kept.write(np.array([2, 0, 3, 1]), batch.to_items())
    read = Batch.from_items(kept.read(np.array([2, 0, 3, 1])), torch.device("cpu"))
    assert torch.equal(read.obs["x"], batch.obs["x"])
    assert torch.equal(read.target, batch.target)  # type: ignore[arg-type]
    read.obs["x"].zero_()
    np.testing.assert_array_equal(kept.items["obs.x"][[2, 0, 3, 1], 0], batch.obs["x"][0].numpy())


def test_arrays_are_on_disk_only_above_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "IN_MEMORY", 5 * 8)
    kept = Store(5)
    kept.write(
        np.array([0]),
        {"at": np.zeros(1), "above": np.zeros((1, 2)), "bytes": np.zeros((1, 40), np.bool_)},
    )
    assert {name: isinstance(value, np.memmap) for name, value in kept.items.items()} == {
        "at": False,
        "above": True,
        "bytes": True,
    }


@pytest.mark.parametrize("shape", [(6,), (1,), (2, 4)], ids=str)
def test_an_example_of_another_shape_is_refused_with_its_field(shape: tuple[int, ...]) -> None:
    """Shapes that numpy would broadcast are refused too."""
    kept = Store(5)
    kept.write(np.arange(2), {"obs.x": np.zeros((2, 4))})
    message = f"obs.x has the shape {shape}; it must be (4,), as in the first example stored"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}; for examples of d"):
        kept.write(np.arange(2), {"obs.x": np.zeros((2, *shape))})


def test_fields_of_masked_examples_are_padded_to_the_longest() -> None:
    kept = Store(3)
    for row, length in enumerate((2, 3, 1)):
        text = {
            "obs.ids": np.full((1, 1, length), 7),
            "obs.mask": np.ones((1, 1, length), bool),
            "target": np.full((1, 1, length), 4),
            "output": np.full((1, 1, 2 * length), 5.0),
        }
        kept.write(np.array([row]), text)
    found = {name: value[:, 0] for name, value in kept.read(np.arange(3)).items()}
    mask = np.array([[1, 1, 0], [1, 1, 1], [1, 0, 0]], bool)
    np.testing.assert_array_equal(found["obs.mask"], mask)
    np.testing.assert_array_equal(found["obs.ids"], np.where(mask, 7, 0))
    np.testing.assert_array_equal(found["target"], np.where(mask, 4, -100))
    np.testing.assert_array_equal(found["output"], np.where(mask.repeat(2, 1), 5.0, np.nan))
