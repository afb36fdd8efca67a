"""The demo of forgetting, in control and in a stream of images: `python example.py`.

It takes at most 3 minutes on 2 cores. One agent learns three control tasks in a row, another one
ten digits, two at a time. Each is trained once with plain fine-tuning, which forgets, and once with
EWC + replay, which does not.
"""

import argparse
import time
from pathlib import Path

import torch
from rich.console import Console

from everloop.loop import Result, score_matrix_figure
from everloop.scenarios import Experiment, Scenario, SplitDigits, SwitchingPlant
from everloop.scenarios.progress import Progress
from everloop.scenarios.report import print_scores

SCENARIOS: list[Scenario] = [SwitchingPlant(steps=12_288), SplitDigits(epochs=8)]
STRATEGIES = {"plain fine-tuning": ["none"], "EWC + replay": ["ewc", "replay"]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("everloop-demo"),
        help="folder for the runs and the picture; replaces those of an earlier demo",
    )
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # networks this small gain nothing from more threads
    console, began = Console(), time.perf_counter()
    results: dict[str, Result] = {}
    for scenario in SCENARIOS:
        for title, strategies in STRATEGIES.items():
            name = f"{scenario.name}, {title}"
            out = arguments.out / scenario.name / "+".join(strategies)
            experiment = Experiment(scenario, strategies, arguments.seed, out, overwrite=True)
            console.print(name, highlight=False)
            with Progress(console, name) as progress:
                results[name] = experiment.run([progress])
    console.print()
    for scenario in SCENARIOS:
        own = {name: result for name, result in results.items() if name.startswith(scenario.name)}
        print_scores(own, console)
    picture = arguments.out / "scores.png"
    score_matrix_figure(results).savefig(picture, dpi=120)
    console.print(
        "switching-plant: 0 is a random agent, 1 the best known; split-digits: accuracy in %. "
        f"Took {time.perf_counter() - began:.0f} s.",
        highlight=False,
    )
    console.print(f"picture of the matrices: {picture}", highlight=False, soft_wrap=True)
    console.print(
        f"see it live:             tensorboard --logdir {arguments.out}",
        highlight=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    main()
