"""Single-pass split CIFAR-100: `python benchmarks/cifar100.py --data DIR`.

DIR holds cifar100 and cifar10. There are 10 tasks of 10 classes, in an order drawn by the seed;
each training image is seen once. All methods have the same network, optimizer, learning rate and
batch size.

Prints the table of docs/results.md: accuracy over all tasks after the last one, forgetting
(Chaudhry et al. 2018) and learning accuracy, in % of the test images, as the mean over the seeds
and the value of each seed. `--held-out` measures on 5,000 training images that are left out of
training, for choosing settings. Runs that the folder already holds are not repeated.
"""

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from runs import cell, run

from everloop.loop.results.metrics import forgetting

COMMON = (
    "--epochs 1 --batch-size 10 --eval-every 1000000 --architecture convnet --width 512 "
    "--pretrain-epochs 25 --training.learning-rate 0.0003"
)
REPLAY = "--replay.capacity 2000 --replay.batch-size 32"
NESTED = "--periods [1,2,4]"
METHODS = {
    "none": "--strategies none",
    "ewc": "--strategies ewc --ewc.strength 100",
    "replay": f"--strategies replay {REPLAY}",
    "nested": f"--strategies none {NESTED}",
    "ewc,replay": f"--strategies ewc,replay {REPLAY} --ewc.strength 30",
    "replay, nested": f"--strategies replay {REPLAY} {NESTED}",
    "joint": "--strategies joint",
}
"""What `everloop run` is given for each method."""


def experiment(kind: str, method: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Return the result of one run: a scenario type, a method, a seed."""
    held_out = ["--held-out", "5000"] if args.held_out else []
    data = ["--data", f"{args.data}/cifar100", "--pretrain", f"{args.data}/cifar10"]
    seeds = ["--seed", str(seed), "--class-seed", str(seed)]
    own = f"{COMMON} {METHODS[method]}".split()
    words = ["split-cifar100", *held_out, "--scenario-type", kind, *data, *own, *seeds]
    images = "held-out" if args.held_out else "test"
    return run(words, args.out / images / kind / method / str(seed))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/cifar100"))
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("--kinds", nargs="+", default=["task", "class"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = {
            (seed, kind, method): pool.submit(experiment, kind, method, seed, args)
            for seed in args.seeds
            for kind in args.kinds
            for method in args.methods
        }
    print("| scenario | method | accuracy | forgetting | learning accuracy |")
    print("|---|---|---|---|---|")
    for kind, method in ((kind, method) for kind in args.kinds for method in args.methods):
        tables = [
            np.array(runs[seed, kind, method].result()["scores"], dtype=float)
            for seed in args.seeds
        ]
        phases = [[task] for task in range(10)] if method != "joint" else [list(range(10))]
        forgotten = cell([forgetting(table.tolist(), phases) for table in tables], 1)
        learned = cell(
            [None if method == "joint" else float(table.diagonal().mean()) for table in tables], 1
        )
        print(
            f"| {kind} | {method} | {cell([table[-1].mean() for table in tables], 1)} | "
            f"{forgotten} | {learned} |"
        )


if __name__ == "__main__":
    main()
