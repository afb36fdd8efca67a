"""Every strategy, as it comes, in every type of class, domain and task: `python
benchmarks/survey.py --out runs/survey`.

`everloop run split-digits`, nothing tuned: what a user gets who names a strategy and no more.
Prints the table of docs/results.md: the mean over the seeds of the average accuracy in % after the
last task, and the seeds' own; a refusal is a dash. One thread each, as many at once as `--jobs`
says; runs that the folder already holds are not repeated.
"""

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from runs import cell, run

from everloop.loop import PRETRAINING, STRATEGIES

TYPES = ["class", "domain", "task"]
ELSEWHERE = {
    "clear",
    "progressive",
    "growth",
}  # for control, and for networks with columns and branches
NAMES = ["none", *[n for n in (*STRATEGIES, *PRETRAINING) if n not in ELSEWHERE], "joint"]


def average(strategies: str, scenario_type: str, seed: int, folder: Path) -> float | None:
    """None where it is refused."""
    words = [
        "split-digits",
        "--scenario-type",
        scenario_type,
        "--strategies",
        strategies,
        "--seed",
        str(seed),
    ]
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
