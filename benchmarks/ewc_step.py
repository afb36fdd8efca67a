"""What EWC costs a training step of the agent's own network: `python benchmarks/ewc_step.py`.
Wanted: a ratio of at most 1.10.

The plain and the EWC learner take turns, step by step, on one thread with fused Adam on both sides;
the
medians are compared. Networks: the agent of each scenario, at its batch.
"""

import statistics
import time
from dataclasses import replace

import torch

from everloop.loop import EWC, Batch, Learner, Strategy
from everloop.scenarios import Scenario, SplitDigits, SwitchingPlant

ROUNDS = 300


def consolidated(scenario: Scenario, strategies: list[Strategy]) -> Learner:
    learner, plan, _, consolidation = scenario.build(seed=0)
    learner.attach(strategies)
    batch = learner.rollout(consolidation, [0], plan.consolidation_steps, seed=0)
    for strategy in strategies:
        strategy.end_task(consolidation.tasks[0], [batch], learner)
    return learner


def step_seconds(learner: Learner, batch: Batch) -> float:
    began = time.perf_counter()
    learner.updater.step(learner.loss(batch), batch)
    return time.perf_counter() - began


def training_batch(scenario: Scenario, learner: Learner, steps: int) -> Batch:
    """A batch as the scenario trains on: for the plant sequences of a minibatch's size, for digits
    32 images.
    """
    batch = learner.rollout(scenario.world("train", 32, 0), [0], steps, seed=1)
    return replace(batch, target=learner.targets(batch))


def main() -> None:
    torch.set_num_threads(1)
    print(f"an EWC step against a plain step, one thread, medians of {ROUNDS} steps taken in turn")
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
