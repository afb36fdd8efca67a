"""Learners without a world, for benchmarks of single training steps.

`ready` builds the training step of a strategy, `ratio` times two steps in turns.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from gymnasium import spaces
from torch import nn

from everloop.agents import MLP, Agent, Classifier, ConvNet5, GrowingMLP, ProgressiveMLP
from everloop.contract import Task
from everloop.loop import (
    STRATEGIES,
    Batch,
    Categorical,
    ICaRL,
    Learner,
    NestedOptimizer,
    Strategy,
    SupervisedLearner,
    levels_by_depth,
)
from everloop.loop.learners.learning_rate import RATES
from everloop.loop.sb3.on_policy import SB3Learner
from everloop.scenarios.switching_plant import SwitchingPlant

BATCH, CLASSES = 128, 10
COLUMN = 40
"""Units a layer of `progressive`'s columns. 100 columns of 400 have 800 million weights."""
CONTROL = "control"
SETTINGS: dict[str, dict[str, Any]] = {
    **{
        name: {"capacity": 1000, "batch_size": BATCH}
        for name in ("replay", "der", "er_ace", "mir", "icarl", "agem", "gem")
    },
    "derpp": {"capacity": 1000, "batch_size": BATCH // 2},  # it draws twice
    "ewc": {"strength": 1.0},
    "packnet": {"retrain_steps": 1},
    "gdumb": {"epochs": 1},
    "growth": {"threshold": 0.0, "patience": 1},  # grows with every batch, up to its limit
}
"""Settings of each strategy; the others have their defaults."""

IN_CONTROL = {"capacity": 1000, "batch_size": 32}  # as many sequences as a minibatch has
Step = Callable[[int], None]


class Bench(SupervisedLearner):
    """A supervised learner without a world."""

    task_aware = True

    def __init__(self, module: nn.Module, strategies: list[Strategy], nested: bool = False) -> None:
        adam = torch.optim.Adam(module.parameters(), lr=1e-4, fused=True)
        self.module, self.likelihood = module, Categorical(CLASSES)
        self.optimizer = (
            NestedOptimizer(adam, levels_by_depth(module, [1, 2, 4])) if nested else adam
        )
        self.rate = RATES["constant"](self.optimizer)
        self.task_aware = not any(isinstance(strategy, ICaRL) for strategy in strategies)
        self.attach(strategies)

    def update(self, batch: Batch) -> None:
        """Make one training step on `batch`, as `advance` does."""
        assert batch.target is not None
        output, recalled = self._look(batch)
        for strategy in self.strategies:
            strategy.observe(replace(batch, output=output.prediction.detach()), self)
        self._update(batch, batch.target, output, recalled, parts=1)


BACKBONES: dict[str, Callable[..., Any]] = {
    "progressive": partial(ProgressiveMLP, hidden=(COLUMN, COLUMN)),
    "growth": GrowingMLP,
}


def mlp(strategy: str = "") -> nn.Module:
    """Return the MLP 784-400-400-10, in the form that `strategy` requires."""
    return Classifier(BACKBONES.get(strategy, MLP)((28, 28, 1)), CLASSES)


def convnet() -> nn.Module:
    return Classifier(ConvNet5((32, 32, 3), (256,)), CLASSES)


def agent() -> nn.Module:
    space = spaces.Dict(
        {
            "image": spaces.Box(0, 255, (28, 28, 1), np.uint8),
            "sensor": spaces.Box(-1, 1, (16,), np.float32),
        }
    )
    return Agent(space, CLASSES, recurrent=True, token_size=192, hidden_size=384)


NETWORKS: dict[str, Callable[[], nn.Module]] = {"mlp": mlp, "convnet": convnet, "agent": agent}


def fresh(network: str, seed: int, task: int = 0) -> Batch:
    """Return a random labelled batch of BATCH examples in the shape that `network` takes."""
    g = torch.Generator().manual_seed(seed)
    shape = (32, 32, 3) if network == "convnet" else (28, 28, 1)
    obs = {"image": torch.randint(256, (1, BATCH, *shape), dtype=torch.uint8, generator=g)}
    if network == "agent":
        obs["sensor"] = torch.rand(1, BATCH, 16, generator=g)
    start = torch.ones(1, BATCH, dtype=torch.bool)
    return Batch(
        obs,
        start,
        target=torch.randint(CLASSES, (1, BATCH), generator=g),
        task=torch.full((BATCH,), task),
    )


def ready(network: str, name: str, tasks: int = 1, plain: bool = False) -> Step:
    """Return a training step with a strategy that has ended some tasks and begun another.

    Args:
        network: A key of NETWORKS, or CONTROL.
        name: The strategy, or "nested" for nested levels.
        tasks: Number of ended tasks, 1 or more.
        plain: Leave the strategy out, for the plain step on the same network.
    """
    torch.manual_seed(0)
    if network == CONTROL:
        return _in_control([] if plain else [STRATEGIES[name](**IN_CONTROL)], tasks)
    settings = SETTINGS.get(name, {}) | ({"limit": min(tasks, 10)} if name == "growth" else {})
    strategies = [] if plain or name == "nested" else [STRATEGIES[name](**settings)]
    bench = Bench(
        mlp(name) if network == "mlp" else NETWORKS[network](),
        strategies,
        nested=name == "nested" and not plain,
    )
    _live(bench, tasks, bench.update, lambda k, seed: fresh(network, seed, k))
    batches = [fresh(network, 7 + i, tasks) for i in range(8)]
    return lambda i: bench.update(batches[i % 8])


def _in_control(strategies: list[Strategy], tasks: int) -> Step:
    """Return a step of `switching-plant`'s PPO: all that follows a rollout, with its 20 updates."""
    scenario = SwitchingPlant()
    learner = cast(SB3Learner, scenario.make_learner(scenario.make_world("train", 32, 0), 0))
    learner.attach(strategies)
    learner.learn([0], 1)
    collected = learner.rollout_batch()

    def played(task: int, seed: int = 0) -> Batch:
        return replace(collected, task=torch.full((len(collected),), task))

    def observe(batch: Batch) -> None:
        for strategy in strategies:
            strategy.observe(batch, learner)

    def step(i: int) -> None:
        observe(played(tasks))
        learner.model.train()

    _live(learner, tasks, observe, played)
    return step


def _live(
    learner: Learner,
    tasks: int,
    update: Callable[[Batch], None],
    batch: Callable[[int, int], Batch],
) -> None:
    """Train through `tasks` tasks of 100 batches in total, which fill the memories; begin another.

    Args:
        learner: The learner with its strategies attached.
        tasks: Number of tasks, 1 or more.
        update: Makes one update on a batch.
        batch: (task, seed) -> a batch of this task.
    """
    for k in range(tasks + 1):
        for strategy in learner.strategies:
            strategy.begin_task(Task(k, str(k)), learner)
        for i in range(-(-100 // tasks) if k < tasks else 1):
            update(batch(k, 100 * k + i))
        for strategy in learner.strategies if k < tasks else []:
            strategy.end_task(Task(k, str(k)), [batch(k, 1000 + k)], learner)


def seconds(call: Callable[[], Any]) -> float:
    """Return the duration of `call`."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def ratio(plain: Step, other: Step, rounds: int) -> float:
    """Return median(other) / median(plain) of `rounds` steps in turns, after five warm-ups."""
    pairs = [tuple(seconds(partial(step, i)) for step in (plain, other)) for i in range(rounds + 5)]
    a, b = (statistics.median(column) for column in zip(*pairs[5:], strict=True))
    return float(b / a)
