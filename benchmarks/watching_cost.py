"""What saving, TensorBoard and evaluation cost: `python benchmarks/watching_cost.py`.

Wanted: checkpoints at their default interval at most 2 % of a run, TensorBoard and evaluation at
their defaults at most 10 % together. One run of digits (EWC + replay) or of the plant (PPO) is
repeated with more and more of these, in turns. Times are CPU seconds of the process and its
children, as medians over the rounds. The first line has an evaluation at the end of each task only,
because no result exists without it.
"""

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from everloop.loop import Checkpoints, Run, TensorBoardLogger
from everloop.scenarios import Scenario, SplitDigits, SwitchingPlant
from everloop.scenarios.strategies import make_strategy

LAST = 10**9  # an evaluation every so many steps: only at the end of each task

SCENARIOS: dict[str, Callable[..., Scenario]] = {
    "digits": lambda **given: SplitDigits(epochs=40, **given),
    "plant": lambda **given: SwitchingPlant(recurrent=False, num_tasks=2, steps=32_768, **given),
}


def seconds(make: Callable[..., Scenario], evaluated: bool, logged: bool, saved: bool) -> float:
    """Return the CPU seconds of one run."""
    scenario = make(**({} if evaluated else {"eval_every": LAST}))
    learner, plan, evaluation, _ = scenario.build(0)
    strategies: list[Any] = [
        make_strategy(name, dict(scenario.strategy_settings.get(name, {})))
        for name in ("ewc", "replay")
    ]
    with tempfile.TemporaryDirectory() as folder:
        callbacks: list[Any] = [TensorBoardLogger(Path(folder))] if logged else []
        callbacks += [Checkpoints(folder)] if saved else []
        learner.seed(0)
        run = Run(learner, plan, evaluation, strategies, callbacks)
        began = sum(os.times()[:4])
        run.go()
        return sum(os.times()[:4]) - began


STEPS = {
    "a run": (False, False, False),
    "with evaluations": (True, False, False),
    "with evaluations and TensorBoard": (True, True, False),
    "with evaluations, TensorBoard and checkpoints": (True, True, True),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| scenario | | CPU s | of the run | more than the line above |\n|---|---|---|---|---|")
    for name, make in SCENARIOS.items():
        times: dict[str, list[float]] = {step: [] for step in STEPS}
        for round_ in range(args.rounds + 1):
            for step, options in STEPS.items():
                found = seconds(make, *options)
                if round_:  # the first round warms up
                    times[step].append(found)
        first = statistics.median(times["a run"])
        before = first
        for step, found_all in times.items():
            now = statistics.median(found_all)
            more = 100 * (now - before) / first
            print(
                f"| {name} | {step} | {now:.2f} | {now / first:.3f} | {more:+.1f} % |", flush=True
            )
            before = now


if __name__ == "__main__":
    main()
