"""What each strategy costs a training step: `python benchmarks/strategy_cost.py`.

A plain step and a strategy's step take turns, both with fused Adam and the same batch of 128.
Prints the ratio of the medians. Rehearsal replays 128 stored examples with every step.
`progressive` has one frozen column of 40 units beside the active one, and is compared with the same
kind of network; `growth` has one branch. `clear` is for control: see benchmarks/cost_by_tasks.py.
"""

import argparse
import warnings

import torch
from benches import BATCH, NETWORKS, agent, ratio, ready

from everloop.loop import STRATEGIES

ROUNDS = 120
WANTED = {
    "ewc": 1.15,
    "mas": 1.15,
    "l2": 1.15,
    "packnet": 1.15,
    "nested": 1.15,
    "si": 1.25,
    "lwf": 1.6,
    "replay": 2.1,
    "derpp": 2.1,
    "agem": 2.1,
}


def cost(network: str, name: str) -> str:
    """Return the ratio of a strategy's step to a plain one, or why the strategy is refused."""
    try:
        return f"{ratio(ready(network, name, plain=True), ready(network, name), ROUNDS):.2f}"
    except ValueError as refused:
        return f"- ({str(refused)[:30]})"


def main() -> None:
    warnings.simplefilter("ignore")
    known = ["nested", *[name for name in STRATEGIES if name != "clear"]]
    parser = argparse.ArgumentParser()
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--strategies", nargs="+", default=known, choices=known)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    weights = sum(p.numel() for p in agent().parameters())
    print(f"threads {args.threads}, batch {BATCH}; the agent has {weights:,} weights")
    print(f"| strategy | {' | '.join(args.networks)} | wanted (mlp) |")
    print(f"|---|{'---|' * (len(args.networks) + 1)}")
    for name in args.strategies:
        print(
            f"| {name} | {' | '.join(cost(network, name) for network in args.networks)} | "
            f"{WANTED.get(name, '-')} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
