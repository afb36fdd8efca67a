"""How fast memories are: `python benchmarks/memory_speed.py`.

Images are uint8, 3 x 32 x 32. Wanted: a batch of 128 is drawn in at most 0.1 ms and inserted in at
most 2 us an image, both independent of the number of stored images from 1,000 to 50,000. For
comparison, it also times what people write by hand: a list of dicts, and an index by `rng.choice`.
Times are medians on one thread.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from everloop.loop.memory import MEMORIES, Memory

BATCH = 128


def median_us(call: Callable[[], Any], rounds: int = 300) -> float:
    """Return the median duration of `call` in microseconds."""
    found = []
    for _ in range(rounds):
        began = time.perf_counter()
        call()
        found.append(time.perf_counter() - began)
    return statistics.median(found) * 1e6


def items(rng: np.random.Generator, count: int = BATCH) -> dict[str, Any]:
    """Return `count` random examples, as a memory stores them."""
    return {
        "obs.image": rng.integers(0, 256, (count, 1, 3, 32, 32), dtype=np.uint8),
        "target": rng.integers(0, 100, (count, 1)),
        "task": rng.integers(0, 10, count),
    }


def insert(memory: Memory, batch: dict[str, Any]) -> None:
    """Offer the examples of `batch` to `memory`, as a strategy does."""
    scores = None if memory.score_by is None else np.linspace(0, 1, len(batch["task"]))
    groups = batch["task"] if memory.group_by == "task" else batch["target"][:, 0]
    kept, rows = memory.reserve(len(batch["task"]), groups, scores)
    memory.write(rows, {name: value[kept] for name, value in batch.items()})


def insert_all(memory: Memory, batches: list[dict[str, Any]]) -> None:
    for batch in batches:
        insert(memory, batch)


def drawn(
    memory: Memory, tasks: npt.NDArray[np.int64] | None = None
) -> dict[str, npt.NDArray[Any]]:
    return memory.read(memory.draw(BATCH, tasks))


def filled(name: str, capacity: int) -> Memory:
    """Return a full memory of this rule and capacity."""
    memory, rng = MEMORIES[name](capacity), np.random.default_rng(0)
    while len(memory) < capacity:
        insert(memory, items(rng))
    return memory


def main() -> None:
    torch.set_num_threads(1)
    rng = np.random.default_rng(1)
    past = np.arange(9)
    print(
        f"| memory | stored | draw {BATCH}, us | of past tasks, us | insert, us an image | one by "
        "one, us an image | fill, us an image |"
    )
    print("|---|---|---|---|---|---|---|")
    for name in MEMORIES:
        for capacity in (1000, 10_000, 50_000):
            memory = filled(name, capacity)
            draw = median_us(partial(drawn, memory))
            some = median_us(partial(drawn, memory, past))
            batches = [items(rng) for _ in range(20)]
            ones = [items(rng, 1) for _ in range(50)]
            inserted = median_us(partial(insert_all, memory, batches), 10) / (20 * BATCH)
            single = median_us(partial(insert_all, memory, ones), 10) / 50
            fresh = MEMORIES[name](20 * BATCH)
            began = time.perf_counter()
            insert_all(fresh, batches)
            fill = (time.perf_counter() - began) * 1e6 / (20 * BATCH)
            print(
                f"| {name} | {capacity:,} | {draw:.0f} | {some:.0f} | {inserted:.2f} | "
                f"{single:.1f} | {fill:.2f} |",
                flush=True,
            )
    stored = items(rng, 50_000)["obs.image"]
    dicts = [{"image": torch.from_numpy(image)} for image in stored]
    by_list = median_us(
        lambda: torch.stack([dicts[i]["image"] for i in rng.integers(0, len(dicts), BATCH)])
    )
    by_choice = median_us(lambda: stored[rng.choice(len(stored), BATCH, replace=False)])
    print(
        f"a list of dicts: {by_list:.0f} us; an index by choice without replacement: "
        f"{by_choice:.0f} us"
    )


if __name__ == "__main__":
    main()
