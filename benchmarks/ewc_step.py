"""What EWC costs a training step of the agents: `python benchmarks/ewc_step.py`.

Wanted: a ratio of at most 1.10. A plain learner and one with EWC take turns, step by step, on one
thread with fused Adam; the medians are compared. The networks are the agents of both scenarios, at
their batch sizes.
"""

import statistics
import time
from dataclasses import replace

import torch

from everloop.loop import EWC, Batch, Learner, Strategy
from everloop.scenarios import Scenario, SplitDigits, SwitchingPlant

ROUNDS = 300


def consolidated(scenario: Scenario, strategies: list[Strategy]) -> Learner:
    """Return the scenario's learner with strategies that have ended its first task."""
    learner, *_ = scenario.build(seed=0)
    learner.attach(strategies)
    batch = learner.rollout(scenario.make_world("train", 32, 0), [0], 64, seed=0)
    for strategy in strategies:
        strategy.end_task(learner.world.tasks[0], [batch], learner)
    return learner


def step_seconds(learner: Learner, batch: Batch) -> float:
    """Make one training step on `batch` and return its duration in seconds."""
    began = time.perf_counter()
    learner.updater.step(learner.loss(batch), batch)
    return time.perf_counter() - began


def training_batch(scenario: Scenario, learner: Learner, steps: int) -> Batch:
    """Return a batch of the scenario's size: a minibatch of plant sequences, or 32 digits."""
    batch = learner.rollout(scenario.make_world("train", 32, 0), [0], steps, seed=1)
    return replace(batch, target=learner.targets(batch))


def main() -> None:
    torch.set_num_threads(1)
    print(f"a plain step, an EWC step and their ratio; one thread, medians of {ROUNDS} steps")
    for scenario, steps in ((SwitchingPlant(), 16), (SplitDigits(), 1)):
        plain, ewc = consolidated(scenario, []), consolidated(scenario, [EWC(1.0)])
        batch = training_batch(scenario, plain, steps)
        times = [(step_seconds(plain, batch), step_seconds(ewc, batch)) for _ in range(ROUNDS)]
        a, b = (statistics.median(column) * 1e3 for column in zip(*times, strict=True))
        weights = sum(p.numel() for p in plain.module.parameters())
        size = batch.length * len(batch)
        print(
            f"  {scenario.name:16} {weights:7,} weights, batch {size:3}: {a:5.2f} ms, {b:5.2f} ms, "
            f"ratio {b / a:.3f}"
        )


if __name__ == "__main__":
    main()
