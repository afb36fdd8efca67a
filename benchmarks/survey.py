"""Every strategy with its default settings, in every scenario type: `python benchmarks/survey.py`.

Runs `everloop run split-digits`, as for a user who names a strategy and sets nothing else; only
Reptile and MAML must be told their tasks, here all of them. Prints the table of docs/results.md:
the average accuracy in % after the last task, as the mean over the seeds and the value of each
seed; a dash if the strategy refuses. Runs are made `--jobs` at a time with one thread each. Runs
that the folder `--out` already holds are not repeated.
"""

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from runs import cell, run

from everloop.loop import PRETRAINING, STRATEGIES

TYPES = ["class", "domain", "task"]
ELSEWHERE = {"clear", "progressive", "growth"}
"""Strategies for control, and for networks with columns or branches."""

TOLD = {name: [f"--{name}.tasks", "[0,1,2,3,4]"] for name in PRETRAINING}
"""Settings that a strategy refuses to do without."""

NAMES = ["none", *[n for n in (*STRATEGIES, *PRETRAINING) if n not in ELSEWHERE], "joint"]


def average(strategies: str, scenario_type: str, seed: int, folder: Path) -> float | None:
    """Return the average accuracy in %, or None if the strategy refuses the scenario."""
    words = ["split-digits", "--scenario-type", scenario_type]
    words += ["--strategies", strategies, "--seed", str(seed), *TOLD.get(strategies, [])]
    try:
        result = run(words, folder / scenario_type / strategies / str(seed))
    except RuntimeError as refused:
        if "everloop: error" not in str(refused):
            raise
        return None
    score: float = result["average_score"]
    return score


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("runs/survey"))
    parser.add_argument("--strategies", nargs="+", default=NAMES, choices=NAMES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    with ThreadPoolExecutor(args.jobs) as pool:
        futures = {
            name: [
                [pool.submit(average, name, kind, seed, args.out) for seed in args.seeds]
                for kind in TYPES
            ]
            for name in args.strategies
        }
        print(f"| strategy | {' | '.join(TYPES)} |\n|{'---|' * (len(TYPES) + 1)}")
        for name, kinds in futures.items():
            cells = [cell([future.result() for future in waiting], 1) for waiting in kinds]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
