"""What denormal numbers cost a training step: `python benchmarks/denormals.py [--steps 1500]`.

Two MLPs 784-400-400-2 learn one task and then a second one, whose images leave half of the pixels
black. The weights of these pixels then have no gradient. Adam's averages of it shrink below 1e-38
and stay there, as denormal numbers. One of the two networks flushes such numbers to 0, as every run
of everloop does. Both use fused Adam, batch 128 and one thread. Their steps take turns; the times
are medians over a fifth of the steps.
"""

import argparse
import statistics
import time
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BATCH, PARTS, FIRST = 128, 5, 300


class Side:
    """A network and its optimizer, with or without denormal numbers."""

    def __init__(self, flush: bool) -> None:
        torch.manual_seed(0)
        hidden = [
            part for a, b in pairwise([784, 400, 400]) for part in (nn.Linear(a, b), nn.ReLU())
        ]
        self.flush, self.layers = flush, nn.Sequential(*hidden, nn.Linear(400, 2))
        self.adam = torch.optim.Adam(self.layers.parameters(), fused=True)

    def step(self, x: Tensor, y: Tensor) -> float:
        """Make one training step and return its duration in seconds."""
        torch.set_flush_denormal(self.flush)
        began = time.perf_counter()
        loss = F.cross_entropy(self.layers(x), y)
        self.adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.adam.step()
        return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=1500)
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    kept, flushed = Side(False), Side(True)
    x, y = torch.rand(BATCH, 784), torch.arange(BATCH) % 2
    for side in (kept, flushed):
        for _ in range(FIRST):
            side.step(x, y)
    x[:, 392:] = 0.0
    print(
        "| steps of the second task | as they are (ms) | flushed (ms) | ratio |\n|---|---|---|---|"
    )
    for part in range(PARTS):
        pairs = [(kept.step(x, y), flushed.step(x, y)) for _ in range(steps // PARTS)]
        a, b = (1e3 * statistics.median(column) for column in zip(*pairs, strict=True))
        print(
            f"| up to {(part + 1) * (steps // PARTS)} | {a:.2f} | {b:.2f} | {a / b:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
