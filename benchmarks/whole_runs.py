"""Whole runs against the leanest loop by hand: `python benchmarks/whole_runs.py [--strategies ewc
replay] [--updates 200] [--rounds 5]`.

Wanted: at most 1.15 times its time. 5 tasks of 2 classes (60,000 synthetic images of 28 x 28,
uint8), MLP 784-400-400-10, batch 128, fused Adam on both sides, the same examples in the same
order. Ours: a stream, a supervised learner, its `learn`, and the strategy's `begin_task` and
`end_task` with the 512 examples played for the latter, as in `closed_loop.run`; no evaluation and
no monitors. By hand (by_hand.py, by_hand_*.py): arrays, and the same 512 examples at a task's end.
Both flush denormals. "none, arrays" is ours without the stream, in a world that only indexes
arrays. The sides take turns, task by task; medians over rounds.

Before that both sides run 10 updates a task in double precision: the distance of their weights over
the way that these have come must be below 1e-9; weights that a strategy adds have come from 0.
(GEM's memory by hand is another than ours, so its weights are not compared.) La-MAML takes plain
gradient descent in place of Adam, as it is written for; Reptile's and MAML's runs begin with their
meta-training. Left out: clear, which repeats a policy's actions and values.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from by_hand import BATCH, RATE, Hand, Phase, Rows, Run, ewc, l2, lwf, mas, none, packnet, si
from by_hand_exemplars import gdumb, icarl, la_maml, mir
from by_hand_fisher import ewc_kfac, rwalk
from by_hand_meta import INNER, MAML, REPTILE, STEPS, maml, reptile
from by_hand_networks import growth, hat, lora, progressive
from by_hand_plasticity import MATURITY, REPLACED, continual_backprop, l2_init, shrink_and_perturb
from by_hand_rehearsal import CAPACITY, CLASSES, agem, der, derpp, er_ace, gem, replay
from torch import Tensor

from everloop.agents import MLP, Classifier, GrowingMLP, ProgressiveMLP
from everloop.envs import Examples, make_vec
from everloop.loop import STRATEGIES, SupervisedLearner, Training, World
from everloop.loop.world import play

TASKS, END, SEED = 5, 512, 0
CHECKED, TOLERANCE = 10, 1e-9  # updates a task, relative distance
ARRAYS = "none, arrays"
META: dict[Callable[[Hand], Run], int] = {
    reptile: STEPS,
    maml: STEPS + 1,
}  # they begin with so many batches an iteration
HAND: dict[str, Callable[[Hand], Run]] = {
    **{f.__name__: f for f in (none, l2, ewc, ewc_kfac, mas, si, rwalk, lwf)},
    **{f.__name__: f for f in (replay, der, derpp, er_ace, mir, gdumb, icarl, agem, gem, la_maml)},
    **{f.__name__: f for f in (packnet, hat, lora, progressive, growth)},
    **{f.__name__: f for f in (*META, l2_init, shrink_and_perturb, continual_backprop)},
    ARRAYS: none,
}
MEMORY = {"capacity": CAPACITY, "batch_size": BATCH}
SETTINGS: dict[str, dict[str, Any]] = {
    "l2": {"strength": 0.1},
    "ewc": {"strength": 100.0, "fisher": "empirical"},  # labels drawn would be others on each side
    "mas": {"strength": 0.1},
    "si": {"strength": 1.0},
    **dict.fromkeys(("replay", "der", "er_ace", "agem", "gem", "la_maml"), MEMORY),
    "derpp": {"capacity": CAPACITY, "batch_size": BATCH // 2},  # it draws twice
    "mir": {"capacity": CAPACITY, "batch_size": BATCH // 2, "candidates": BATCH},
    "icarl": {"batch_size": BATCH},
    "reptile": {"inner_lr": INNER, "outer_lr": REPTILE},
    "maml": {"inner_lr": INNER, "outer_lr": MAML},
    "l2_init": {"strength": 0.01},
    "continual_backprop": {"replacement_rate": REPLACED, "maturity": MATURITY},
}
BACKBONES: dict[str, Callable[..., Any]] = {
    "progressive": ProgressiveMLP,
    "growth": GrowingMLP,
}  # at first the same MLP
TOLD = {"packnet", "hat", "lora", "progressive"}
DIFFERENT = {"gem"}  # another memory by hand


def synthetic(count: int) -> Examples:
    """A faint pattern of its class in every image of noise; one label in ten is wrong, so that
    gradients do not vanish.
    """
    rng = np.random.default_rng(0)
    labels, patterns = (
        rng.integers(0, CLASSES, count),
        rng.integers(0, 64, (CLASSES, 28, 28, 1), np.uint8),
    )
    images = rng.integers(0, 192, (count, 28, 28, 1), np.uint8) + patterns[labels]
    wrong = rng.random(count) < 0.1
    return Examples(images, np.where(wrong, labels ^ 1, labels), [str(c) for c in range(CLASSES)])


def stream(data: Examples, cue: bool) -> Any:
    """Classes 0 and 1, 2 and 3, ..., told apart by one head; some have to be told the task, though
    the network does not look at it.
    """
    task_split = {"kind": "classes", "classes_per_task": CLASSES // TASKS}
    world = make_vec(
        "everloop:everloop/ImageStream-v0",
        BATCH,
        data=(data, data),
        task_split=task_split,
        task_cue=cue,
    )
    world.reset(seed=SEED)
    return world


def shown(world: World, task: int, steps: int, seed: int | None = None) -> Rows:
    """The rows of the data that `world` shows in the next steps of `task`, (steps, BATCH)."""
    play(world, [task], seed)
    return np.stack([world.step(np.zeros(BATCH, np.int64))[4]["index"] for _ in range(steps)])


class Indexed:
    """The leanest world: what the phases hold, from arrays."""

    num_envs = BATCH

    def __init__(self, world: World, data: Examples, phases: list[Phase]) -> None:
        self.tasks, self.data, self.phases = world.tasks, data, phases
        self.single_observation_space, self.single_action_space = (
            world.single_observation_space,
            world.single_action_space,
        )

    def reset(
        self, *, seed: int | None = None, options: Any = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        self.rows, self.i = self.phases[options["task"]].rows, 0
        return {"image": self.data.inputs[self.rows[0]]}, {}

    def step(self, actions: Any) -> tuple[dict[str, Any], Any, Any, Any, dict[str, Any]]:
        info, self.i = {"label": self.data.labels[self.rows[self.i]]}, self.i + 1
        return (
            {"image": self.data.inputs[self.rows[self.i % len(self.rows)]]},
            None,
            None,
            None,
            info,
        )

    def reference(self, task: int) -> tuple[float, float]:
        return 0.0, 1.0


def network(name: str = "none") -> Classifier:
    torch.manual_seed(SEED)
    return Classifier(BACKBONES.get(name, MLP)((28, 28, 1), (400, 400)), CLASSES)


def settings(name: str, updates: int) -> dict[str, Any]:
    """Of a strategy of ours, where a task has so many updates."""
    by_updates = {
        "packnet": {"retrain_steps": updates},
        "rwalk": {"interval": updates // 4},
        "growth": {"patience": updates // 2},
        "gdumb": {
            "epochs": 3 * updates // 20
        },  # over 30, as it has, rounding grows too far for the check
        "icarl": {
            "capacity": 5 * updates
        },  # among few exemplars herding seldom meets distances that rounding decides
        "reptile": {"iterations": updates},
        "maml": {"iterations": updates},
    }
    return SETTINGS.get(name, {}) | by_updates.get(name, {})


def ours(name: str, learner: SupervisedLearner, consolidation: World, updates: int) -> Run:
    strategies = [] if HAND[name] is none else [STRATEGIES[name](**settings(name, updates))]
    learner.attach(strategies)
    for task in learner.world.tasks:
        for strategy in strategies:
            strategy.begin_task(task, learner)
        learner.learn([task.id], updates * BATCH)
        batches = (
            [learner.rollout(consolidation, [task.id], END // BATCH, SEED + 1 + task.id)]
            if strategies
            else []
        )
        for strategy in strategies:
            strategy.end_task(task, learner, batches)
        yield


def in_turns(runs: list[Run]) -> list[float]:
    """Seconds of each run, that take turns task by task."""
    seconds = [0.0] * len(runs)
    for _ in range(TASKS):
        for i, run in enumerate(runs):
            began = time.perf_counter()
            next(run)
            seconds[i] += time.perf_counter() - began
    return seconds


def compared(name: str, data: Examples, phases: list[Phase]) -> tuple[list[float], float]:
    """Seconds of ours and by hand in one run of each, and how far apart they end."""
    cue = name in TOLD
    world: Any = Indexed(stream(data, cue), data, phases) if name == ARRAYS else stream(data, cue)
    module = network(name)
    begin = {p: p.detach().clone() for p in module.parameters()}
    descent = torch.optim.SGD(module.parameters(), RATE, fused=True) if name == "la_maml" else None
    learner = SupervisedLearner(module, world, Training(RATE, device="cpu"), descent)
    hand = Hand(network(), data, phases)
    seconds = in_turns(
        [ours(name, learner, stream(data, cue), len(phases[-1].rows)), HAND[name](hand)]
    )
    way = flat(p - begin.get(p, 0.0) for p in module.parameters())
    return seconds, float((flat(module.parameters()) - flat(hand.weights)).norm() / way.norm())


def flat(weights: Iterable[Tensor]) -> Tensor:
    return torch.cat([p.detach().flatten() for p in weights])


def planned(data: Examples, updates: int, meta: int) -> list[Phase]:
    """What the streams will show; with meta-training before the first task, as a phase of
    its own.
    """
    world, consolidation = stream(data, False), stream(data, False)
    before = [Phase(drawn_tasks(world, updates, meta), np.zeros(0, np.int64))] if meta else []
    return before + [
        Phase(
            shown(world, k, updates), shown(consolidation, k, END // BATCH, SEED + 1 + k).flatten()
        )
        for k in range(TASKS)
    ]


def drawn_tasks(world: World, iterations: int, steps: int) -> Rows:
    """What meta-training will be shown, (iterations, steps, BATCH)."""
    rng = np.random.default_rng(0)
    return np.stack(
        [
            shown(world, int(rng.choice(TASKS)), steps, int(rng.integers(2**31)))
            for _ in range(iterations)
        ]
    )


def table(names: list[str], data: Examples, updates: int, rounds: int) -> None:
    print(
        "| strategy | ours, s | by hand, s | ratio | apart after the check |\n|---|---|---|---|---|"
    )
    plans = {
        meta: planned(data, updates, meta) for meta in {META.get(HAND[name], 0) for name in names}
    }
    for name in names:
        meta = META.get(HAND[name], 0)
        phases, short = plans[meta], planned(data, CHECKED, meta)
        torch.set_default_dtype(
            torch.float64
        )  # in single precision rounding decides which unit is on, and grows from there
        apart = compared(name, data, short)[1]
        torch.set_default_dtype(torch.float32)
        if not apart < TOLERANCE and name not in DIFFERENT:
            raise SystemExit(
                f"{name}: the weights end {apart:.0e} of their way apart, allowed: {TOLERANCE}"
            )
        ours_s, hand_s = (
            statistics.median(column)
            for column in zip(
                *[compared(name, data, phases)[0] for _ in range(rounds)], strict=True
            )
        )
        shown_apart = "-" if name in DIFFERENT else f"{apart:.0e}"
        print(
            f"| {name} | {ours_s:.2f} | {hand_s:.2f} | {ours_s / hand_s:.2f} | {shown_apart} |",
            flush=True,
        )


def main() -> None:
    warnings.simplefilter("ignore")
    known = ["none", ARRAYS, *[name for name in HAND if HAND[name] is not none]]
    parser = argparse.ArgumentParser()
    parser.add_argument("--strategies", nargs="+", default=known, choices=known)
    parser.add_argument("--updates", type=int, default=200, help="of each task")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    print(
        f"threads {args.threads}, {TASKS} tasks of {args.updates} updates, batch {BATCH}, medians "
        f"of {args.rounds}; wanted: at most 1.15"
    )
    table(args.strategies, synthetic(60_000), args.updates, args.rounds)


if __name__ == "__main__":
    main()
