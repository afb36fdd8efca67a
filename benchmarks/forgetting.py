"""How much is forgotten with and without strategies: `python benchmarks/forgetting.py`.

Runs every scenario with every set of strategies and every seed through the command line, `--jobs`
at a time with one thread each. Prints the table of docs/results.md: the mean over the seeds and the
value of each seed. Runs that the folder `--out` already holds are not repeated.
"""

import argparse
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from runs import cell, run

SCENARIOS = {
    "switching-plant": ["switching-plant"],
    "split-digits, class-incremental": ["split-digits", "--scenario-type", "class"],
    "split-digits, domain-incremental": ["split-digits", "--scenario-type", "domain"],
    "split-digits, task-incremental": ["split-digits", "--scenario-type", "task"],
}
STRATEGIES = ["none", "ewc", "replay", "ewc,replay", "joint"]


def experiment(scenario: str, strategies: str, seed: int, folder: Path) -> dict[str, Any]:
    """Return the result of one run."""
    words = [*SCENARIOS[scenario], "--strategies", strategies, "--seed", str(seed)]
    return run(words, folder / scenario.replace(", ", "-") / strategies / str(seed))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("runs/forgetting"))
    parser.add_argument("--scenarios", nargs="+", default=list(SCENARIOS), choices=SCENARIOS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    keys = [(scenario, strategies) for scenario in args.scenarios for strategies in STRATEGIES]
    with ThreadPoolExecutor(args.jobs) as pool:
        futures = {
            key: [pool.submit(experiment, *key, seed, args.out) for seed in args.seeds]
            for key in keys
        }
    print("| scenario | strategies | average score | forgetting | average / joint |")
    print("|---|---|---|---|---|")
    for (scenario, strategies), waiting in futures.items():
        results = [future.result() for future in waiting]
        joint = statistics.mean(
            future.result()["average_score"] for future in futures[scenario, "joint"]
        )
        share = statistics.mean(result["average_score"] for result in results) / joint
        average, forgotten = (
            cell([result[name] for result in results], 3)
            for name in ("average_score", "forgetting")
        )
        print(f"| {scenario} | {strategies} | {average} | {forgotten} | {share:.2f} |")


if __name__ == "__main__":
    main()
