"""What the world and the loop cost beside a bare torch loop: `python benchmarks/stream_speed.py`.

Wanted:

- at batch 128 on an MLP 784-400-400-10: at most 1.10 times the bare loop's time;
- at batch 10 on a linear 784-10: at most 80 us a step above it;
- at most 300 MB of memory above the data set and the bare loop;
- CIFAR-100 from the cache in under 1 s, if it is in the folder EVERLOOP_DATA.

Both have the same network, optimizer (fused Adam), batch size, data (60,000 random images of 28 x
28, which take as long as MNIST's) and one thread. The bare loop indexes tensors in memory by a
random permutation. The two take turns; times are medians over the turns.
"""

import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from everloop.agents import MLP, Classifier
from everloop.envs import Examples, SplitClasses, make_vec
from everloop.envs.data import load_images
from everloop.loop import SupervisedLearner

N, TURNS = 60_000, 15
SETTINGS = (("MLP 784-400-400-10", (400, 400), 128, 150), ("linear 784-10", (), 10, 1000))


def data() -> Examples:
    """Return N random images of 28 x 28 with random labels of 10 classes."""
    rng = np.random.default_rng(0)
    return Examples(
        rng.integers(0, 256, (N, 28, 28, 1), np.uint8),
        rng.integers(0, 10, N),
        [str(c) for c in range(10)],
    )


def network(hidden: tuple[int, ...]) -> Classifier:
    torch.manual_seed(0)
    return Classifier(MLP((28, 28, 1), hidden), 10)


class Bare:
    """The loop that one would write by hand."""

    def __init__(self, hidden: tuple[int, ...], images: Any, labels: Any) -> None:
        net = network(hidden)
        self.net = torch.nn.Sequential(
            *net.backbone.get_submodule("layers").children(), net.heads.linear
        )
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=1e-3, fused=True)
        self.images, self.labels = torch.from_numpy(images.reshape(N, -1)), torch.from_numpy(labels)

    def run(self, batch: int, steps: int) -> float:
        order, began = torch.randperm(N), time.perf_counter()
        for i in range(steps):
            rows = order[i * batch : (i + 1) * batch]
            loss = F.cross_entropy(
                self.net(self.images[rows].float().div_(255.0)), self.labels[rows]
            )
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
        return (time.perf_counter() - began) / steps


class Loop:
    """The same training through the world and the supervised learner."""

    def __init__(self, hidden: tuple[int, ...], examples: Examples, batch: int) -> None:
        world: Any = make_vec(
            "everloop/ImageStream-v0", batch, data=(examples, examples), task_split=SplitClasses(10)
        )
        world.reset(seed=0)
        self.learner = SupervisedLearner(network(hidden), world)

    def run(self, batch: int, steps: int) -> float:
        began = time.perf_counter()
        self.learner.learn([0], steps * batch)
        return (time.perf_counter() - began) / steps


def peak_megabytes(side: str) -> float:
    """Return the peak memory, in MB, of a separate process that runs one side: bare or loop."""
    return float(
        subprocess.run(
            [sys.executable, __file__, side], capture_output=True, text=True, check=True
        ).stdout
    )


def one_side(side: str) -> None:
    """Train with one side, bare or loop, and print the peak memory of this process in MB."""
    examples, (_, hidden, batch, steps) = data(), SETTINGS[0]
    bare_or_loop = (
        Bare(hidden, examples.inputs, examples.labels)
        if side == "bare"
        else Loop(hidden, examples, batch)
    )
    bare_or_loop.run(batch, steps)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    torch.set_num_threads(1)
    if len(sys.argv) > 1:
        return one_side(sys.argv[1])
    examples = data()
    for name, hidden, batch, steps in SETTINGS:
        bare, loop = Bare(hidden, examples.inputs, examples.labels), Loop(hidden, examples, batch)
        turns = [(bare.run(batch, steps), loop.run(batch, steps)) for _ in range(TURNS)]
        a, b = (statistics.median(column) * 1e6 for column in zip(*turns, strict=True))
        print(
            f"{name:20} batch {batch:3}: bare {a:6.0f} us, through the world {b:6.0f} us, ratio "
            f"{b / a:.3f}, {b - a:+.0f} us a step"
        )
    bare_peak, loop_peak = peak_megabytes("bare"), peak_megabytes("loop")
    size = examples.inputs.nbytes / 2**20
    print(
        f"peak memory: bare {bare_peak:.0f} MB, through the world {loop_peak:.0f} MB; the data set "
        f"has {size:.0f} MB"
    )
    if folder := os.environ.get("EVERLOOP_DATA"):
        load_images(Path(folder) / "cifar100")  # fills the cache
        began = time.perf_counter()
        load_images(Path(folder) / "cifar100")
        print(f"CIFAR-100 from the cache: {time.perf_counter() - began:.2f} s")
    return None


if __name__ == "__main__":
    main()
