"""What a training step costs after 1, 10, 30 and 100 tasks: `python benchmarks/cost_by_tasks.py`.

Costs are multiples of a plain step of the same run; the two take turns. The network is the MLP
784-400-400-10, with batch 128 and fused Adam. `progressive` has columns of 40 units a layer and is
compared with a single one. `growth` grows with each of the first ten tasks, which is its limit. In
control, a step is everything that PPO does with a rollout of switching-plant.

`--strategies ewc gem` measures some. Prints a table and, if all are measured, draws
docs/cost_by_tasks.png.
"""

import argparse
import warnings
from pathlib import Path

import matplotlib
import torch
from benches import CONTROL, ratio, ready

from everloop.loop import STRATEGIES

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COUNTS = [1, 10, 30, 100]
PANELS = {
    "penalties on weights": ["l2", "ewc", "ewc_kfac", "si", "mas", "rwalk"],
    "rehearsal and distillation": [
        "replay",
        "der",
        "derpp",
        "er_ace",
        "mir",
        "gdumb",
        "icarl",
        "lwf",
    ],
    "gradients, meta-learning": ["gem", "agem", "la_maml"],
    "architecture": ["packnet", "hat", "lora", "progressive", "growth"],
    "plasticity, nested frequencies": [
        "continual_backprop",
        "l2_init",
        "shrink_and_perturb",
        "nested",
    ],
    "control (PPO)": [f"{CONTROL}/replay", f"{CONTROL}/clear"],
}
NAMES = [name for panel in PANELS.values() for name in panel]
ROUNDS = {"mlp": 40, CONTROL: 8}


def costs(name: str) -> list[float]:
    """Return the cost of a step after each number of tasks in COUNTS, in plain steps."""
    network, _, strategy = name.rpartition("/")
    network = network or "mlp"
    plain = ready(network, strategy, plain=True)
    return [
        ratio(plain, ready(network, strategy, tasks), ROUNDS[network] // (1 if tasks < 100 else 2))
        for tasks in COUNTS
    ]


def draw(found: dict[str, list[float]], picture: Path) -> None:
    """Draw the costs of all strategies, with one panel for each group, into the file `picture`."""
    figure, panels = plt.subplots(2, 3, figsize=(12, 7), sharex=True, sharey=True)
    for axes, (title, names) in zip(panels.flat, PANELS.items(), strict=True):
        for i, name in enumerate(names):
            axes.plot(
                COUNTS,
                found[name],
                marker="osv^D<>*"[i],
                markersize=5,
                label=name.rpartition("/")[2],
            )
        axes.set(title=title, xscale="log", yscale="log", xticks=COUNTS, xticklabels=COUNTS)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="upper left")
    for axes in panels[:, 0]:
        axes.set(
            ylabel="step / plain step",
            yticks=(values := [1, 2, 5, 10, 20, 50, 100, 200]),
            yticklabels=values,
        )
    for axes in panels[-1]:
        axes.set_xlabel("tasks ended")
    figure.tight_layout()
    figure.savefig(picture, dpi=110)


def main() -> None:
    warnings.simplefilter("ignore")
    if left_out := set(STRATEGIES) - {name.rpartition("/")[2] for name in NAMES}:
        raise SystemExit(f"add to a panel of PANELS: {', '.join(sorted(left_out))}")
    parser = argparse.ArgumentParser()
    parser.add_argument("--strategies", nargs="+", default=NAMES, choices=NAMES)
    parser.add_argument("--picture", type=Path, default=Path("docs/cost_by_tasks.png"))
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"| strategy | {' | '.join(f'{n} tasks' for n in COUNTS)} |")
    print(f"|---|{'---|' * len(COUNTS)}")
    found = {}
    for name in args.strategies:
        found[name] = costs(name)
        print(f"| {name} | {' | '.join(f'{value:.2f}' for value in found[name])} |", flush=True)
    if set(found) == set(NAMES):
        draw(found, args.picture)


if __name__ == "__main__":
    main()
