"""Memory of a long run: `python benchmarks/steady_memory.py`.

Wanted: within 5 % after the first fifth. A run of a stream with EWC and replay, checkpoints,
TensorBoard, monitors and evaluations learns a million steps (examples) in two tasks. A short run of
the same kind comes first, so that all libraries are imported. It prints the memory of the process
(resident set) at each tenth, and the largest growth after the first fifth.
"""

import argparse
import os
import tempfile
from pathlib import Path

from everloop.loop import Callback, Run
from everloop.scenarios import Experiment, SplitDigits

BATCH = 100
PAGE = os.sysconf("SC_PAGE_SIZE")


def resident() -> float:
    """Return the resident set of this process in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / 2**20


class Watch(Callback):
    """Prints the memory at each tenth of the run."""

    def __init__(self, steps: int) -> None:
        self.steps, self.found = steps, list[float]()

    def on_step(self, run: Run) -> None:
        if run.steps * 10 // self.steps > len(self.found):
            self.found.append(resident())
            print(f"| {run.steps:,} | {self.found[-1]:.1f} |", flush=True)


def learn(steps: int, callbacks: list[Callback]) -> None:
    """Learn so many steps in two tasks, with all that a run does by default."""
    scenario = SplitDigits(
        tasks=["0-1", "2-3"],
        iterations=steps // (2 * BATCH),
        batch_size=BATCH,
        eval_every=max(steps // 100, BATCH),
    )
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "run")
        Experiment(scenario, "ewc,replay", out=out, checkpoint_every=max(steps // 50, BATCH)).run(
            callbacks
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=1_000_000)
    args = parser.parse_args()
    learn(20 * BATCH, [])
    watch = Watch(args.steps)
    print("| step | memory (MB) |\n|---|---|")
    learn(args.steps, [watch])
    warm = watch.found[1]
    print(f"\ngrowth after the first fifth: {100 * (max(watch.found[1:]) / warm - 1):.1f} %")


if __name__ == "__main__":
    main()
