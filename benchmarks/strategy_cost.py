"""What each strategy costs a training step: `python benchmarks/strategy_cost.py [--networks mlp convnet agent] [--threads 1] [--tasks]`.

A plain step and a strategy's take turns, with fused Adam and the same batch of 128 on both sides; printed
is the ratio of the medians. Rehearsal draws 128 stored examples with every step. `--tasks` measures the step after 1, 10,
30 and 100 tasks instead, on the MLP, and draws docs/cost_by_tasks.png.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import torch
from gymnasium import spaces
from torch import nn

from everloop.agents import MLP, Agent, Classifier, ConvNet5
from everloop.loop import STRATEGIES, Batch, Categorical, Learner, NestedOptimizer, Strategy, SupervisedLearner, levels_by_depth
from everloop.loop.learning_rate import RATES

matplotlib.use("Agg")
BATCH, CLASSES, ROUNDS = 128, 10, 120
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
SETTINGS: dict[str, dict[str, Any]] = {
    **{name: {"capacity": 1000, "batch_size": BATCH} for name in ("replay", "der", "derpp", "er_ace", "mir", "agem", "gem")},
    "derpp": {"capacity": 1000, "batch_size": BATCH // 2},  # it draws twice
    "ewc": {"strength": 1.0},
    "packnet": {"retrain_steps": 1},
    "gdumb": {"epochs": 1},
    "reptile": {"iterations": 0},
    "maml": {"iterations": 0},
}
LEFT_OUT = {"clear", "gdumb", "icarl", "progressive", "growth", "reptile", "maml"}  # need control, or other networks, or cost elsewhere


class Task(NamedTuple):
    id: int
    name: str


class Bench(SupervisedLearner):
    """A supervised learner without a world."""

    told = True

    def __init__(self, module: nn.Module, strategies: list[Strategy], nested: bool = False) -> None:
        adam = torch.optim.Adam(module.parameters(), lr=1e-4, fused=True)
        self.module, self.likelihood = module, Categorical(CLASSES)
        self.optimizer = NestedOptimizer(adam, levels_by_depth(module, [1, 2, 4])) if nested else adam
        self.rate = RATES["constant"](self.optimizer)
        self.attach(strategies)

    def update(self, batch: Batch) -> None:
        """As `learn` does it."""
        assert batch.target is not None
        output, recalled = self._look(batch)
        for strategy in self.strategies:
            strategy.observe(replace(batch, output=output.prediction.detach()), self)
        self._update(batch, batch.target, output, recalled, parts=1)


def mlp() -> nn.Module:
    return Classifier(MLP((28, 28, 1), (400, 400)), CLASSES)


def convnet() -> nn.Module:
    return Classifier(ConvNet5((32, 32, 3), (256,)), CLASSES)


def agent() -> nn.Module:
    space = spaces.Dict({"image": spaces.Box(0, 255, (28, 28, 1), np.uint8), "sensor": spaces.Box(-1, 1, (16,), np.float32)})
    return Agent(space, CLASSES, token_size=192, hidden_size=384)


def fresh(network: str, seed: int, task: int = 0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    shape = (32, 32, 3) if network == "convnet" else (28, 28, 1)
    obs = {"image": torch.randint(256, (1, BATCH, *shape), dtype=torch.uint8, generator=g)}
    if network == "agent":
        obs["sensor"] = torch.rand(1, BATCH, 16, generator=g)
    start = torch.ones(1, BATCH, dtype=torch.bool)
    return Batch(obs, start, target=torch.randint(CLASSES, (1, BATCH), generator=g), task=torch.full((BATCH,), task))


def ready(network: str, names: list[str], tasks: int = 1) -> Bench:
    """A learner that has ended `tasks` tasks and begun another."""
    torch.manual_seed(0)
    nested = names == ["nested"]
    strategies = [] if nested else [STRATEGIES[name](**SETTINGS.get(name, {})) for name in names]
    learner = Bench({"mlp": mlp, "convnet": convnet, "agent": agent}[network](), strategies, nested)
    for k in range(tasks + 1):
        for strategy in strategies:
            strategy.begin_task(Task(k, str(k)), learner)
        learner.update(fresh(network, k, k))
        for strategy in strategies if k < tasks else []:
            strategy.end_task(Task(k, str(k)), learner, [fresh(network, 1000 + k, k)])
    return learner


def seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def ratio(plain: Bench, other: Bench, network: str, rounds: int = ROUNDS) -> float:
    batches = [fresh(network, 7 + i, 99) for i in range(8)]
    pairs = [tuple(seconds(partial(bench.update, batches[i % 8])) for bench in (plain, other)) for i in range(rounds)]
    a, b = (statistics.median(column) for column in zip(*pairs[5:], strict=True))
    return float(b / a)


def by_network(networks: list[str], names: list[str]) -> None:
    print("| strategy | " + " | ".join(networks) + " | wanted (mlp) |\n|---|" + "---|" * (len(networks) + 1))
    for name in names:
        found = []
        for network in networks:
            try:
                found.append(f"{ratio(ready(network, []), ready(network, [name]), network):.2f}")
            except ValueError as error:
                found.append(f"- ({str(error)[:30]})")
        print(f"| {name} | {' | '.join(found)} | {WANTED.get(name, '-')} |", flush=True)


def by_tasks(names: list[str], picture: Path) -> None:
    import matplotlib.pyplot as plt

    counts = [1, 10, 30, 100]
    figure, axes = plt.subplots(figsize=(8, 5))
    print("| strategy | " + " | ".join(f"{n} tasks" for n in counts) + " |\n|---|" + "---|" * len(counts))
    for i, name in enumerate(names):
        values = [ratio(ready("mlp", []), ready("mlp", [name], n), "mlp", 40 if n < 100 else 20) for n in counts]
        print(f"| {name} | {' | '.join(f'{v:.2f}' for v in values)} |", flush=True)
        axes.plot(counts, values, marker="o", label=name, color=plt.get_cmap("tab20")(i % 20), linestyle="-" if i < 20 else "--")
    axes.set(xscale="log", yscale="log", xlabel="tasks ended", ylabel="step / plain step", title="Cost of a training step")
    axes.legend(ncols=3, fontsize=7)
    figure.tight_layout()
    figure.savefig(picture, dpi=120)


def main() -> None:
    warnings.simplefilter("ignore")
    known = ["nested", *[name for name in STRATEGIES if name not in LEFT_OUT]]
    parser = argparse.ArgumentParser()
    parser.add_argument("--networks", nargs="+", default=["mlp", "convnet", "agent"])
    parser.add_argument("--strategies", nargs="+", default=known, choices=known)
    parser.add_argument("--tasks", action="store_true")
    parser.add_argument("--picture", type=Path, default=Path("docs/cost_by_tasks.png"))
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    learner: Learner = ready("agent", [])
    print(f"threads {args.threads}, batch {BATCH}; weights: agent {sum(p.numel() for p in learner.module.parameters()):,}")
    if args.tasks:
        by_tasks(args.strategies, args.picture)
    else:
        by_network(args.networks, args.strategies)


if __name__ == "__main__":
    main()
