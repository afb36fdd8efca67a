"""Whole runs beside the leanest hand-written loops: `python benchmarks/whole_runs.py`.

Wanted: at most 1.15 times the hand-written loop's time. There are 5 tasks of 2 classes (60,000
synthetic images of 28 x 28, uint8). Both sides have an MLP 784-400-400-10, batch 128, fused Adam,
flushed denormals, and the same examples in the same order. They take turns, task by task; times are
medians over rounds.

- Ours: a stream, a supervised learner with its `learn`, and the strategy's `begin_task` and
  `end_task`, with 512 examples sampled for the latter, as in `Run`. No evaluation, no callbacks.
- By hand (by_hand.py, by_hand_*.py): arrays, and the same 512 examples at a task's end.
- "none, arrays": ours without the stream, in a world that only indexes arrays.

Before that, both sides run 10 updates a task in double precision. The distance between their
weights, relative to the distance that the weights have moved, must be below 1e-9. Weights that a
strategy adds count as moved from 0. GEM's weights are not compared, because its hand-written memory
differs. La-MAML uses plain gradient descent instead of Adam, for which it is written. The runs of
Reptile and MAML begin with their meta-training. `clear` is left out because it is for control.
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
from everloop.loop import PRETRAINING, STRATEGIES, SupervisedLearner, Training, World
from everloop.loop.world import reset_to_tasks

TASKS, END, SEED = 5, 512, 0
CHECKED, TOLERANCE = 10, 1e-9  # of the check: updates a task, relative distance of the weights
ARRAYS = "none, arrays"
META: dict[Callable[[Hand], Run], int] = {reptile: STEPS, maml: STEPS + 1}
"""Batches in each iteration of the meta-training with which a run begins."""

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
    "ewc": {"strength": 100.0, "fisher": "empirical"},  # drawn labels would differ
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
BACKBONES: dict[str, Callable[..., Any]] = {"progressive": ProgressiveMLP, "growth": GrowingMLP}
"""Networks that strategies require, at first equal to the MLP."""

TASK_AWARE = {"packnet", "hat", "lora", "progressive"}
DIFFERENT = {"gem"}  # the hand-written memory differs


def synthetic(count: int) -> Examples:
    """Return `count` images of noise with a faint pattern of their class.

    One label in ten is wrong, so that gradients do not vanish.
    """
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, count)
    patterns = rng.integers(0, 64, (CLASSES, 28, 28, 1), np.uint8)
    images = rng.integers(0, 192, (count, 28, 28, 1), np.uint8) + patterns[labels]
    wrong = rng.random(count) < 0.1
    return Examples(images, np.where(wrong, labels ^ 1, labels), [str(c) for c in range(CLASSES)])


def stream(data: Examples, cue: bool) -> Any:
    """Return a stream of the classes 0 and 1, 2 and 3, ..., with one head for all.

    `cue` shows the task, which task-aware strategies require though the network does not use it.
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
    """Return the rows that `world` shows in its next steps of `task`, (steps, BATCH)."""
    reset_to_tasks(world, [task], seed)
    return np.stack([world.step(np.zeros(BATCH, np.int64))[4]["index"] for _ in range(steps)])


class Indexed:
    """The leanest world: it shows the rows of the phases, from arrays."""

    num_envs = BATCH

    def __init__(self, world: World, data: Examples, phases: list[Phase]) -> None:
        self.tasks, self.data, self.phases = world.tasks, data, phases
        self.single_observation_space = world.single_observation_space
        self.single_action_space = world.single_action_space

    def reset(
        self, *, seed: int | None = None, options: Any = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        self.rows, self.i = self.phases[options["task"]].rows, 0
        return {"image": self.data.inputs[self.rows[0]]}, {}

    def step(self, actions: Any) -> tuple[dict[str, Any], Any, Any, Any, dict[str, Any]]:
        info, self.i = {"label": self.data.labels[self.rows[self.i]]}, self.i + 1
        obs = {"image": self.data.inputs[self.rows[self.i % len(self.rows)]]}
        return obs, None, None, None, info

    def reference(self, task: int) -> tuple[float, float]:
        return 0.0, 1.0


def network(name: str = "none") -> Classifier:
    """Return the MLP with the initial weights of SEED, in the form that the strategy requires."""
    torch.manual_seed(SEED)
    return Classifier(BACKBONES.get(name, MLP)((28, 28, 1), (400, 400)), CLASSES)


def settings(name: str, updates: int) -> dict[str, Any]:
    """Return the settings of our strategy for tasks of this number of updates."""
    by_updates: dict[str, dict[str, Any]] = {
        "packnet": {"retrain_steps": updates},
        "rwalk": {"interval": updates // 4},
        "growth": {"patience": updates // 2},
        # over its default 30 epochs, rounding errors would grow too far for the check
        "gdumb": {"epochs": 3 * updates // 20},
        # with few exemplars, herding seldom meets distances that are equal up to rounding
        "icarl": {"capacity": 5 * updates},
        "reptile": {"iterations": updates, "tasks": range(TASKS)},
        "maml": {"iterations": updates, "tasks": range(TASKS)},
    }
    return SETTINGS.get(name, {}) | by_updates.get(name, {})


def ours(name: str, learner: SupervisedLearner, consolidation: World, updates: int) -> Run:
    """Train with our strategy through all tasks, and yield after each."""
    if name in PRETRAINING:
        PRETRAINING[name](**settings(name, updates)).run(learner)
    strategies = [STRATEGIES[name](**settings(name, updates))] if name in STRATEGIES else []
    learner.attach(strategies)
    for task in learner.world.tasks:
        for strategy in strategies:
            strategy.begin_task(task, learner)
        learner.learn([task.id], updates * BATCH)
        if strategies:
            batch = learner.rollout(consolidation, [task.id], END // BATCH, SEED + 1 + task.id)
        for strategy in strategies:
            strategy.end_task(task, [batch], learner)
        yield


def in_turns(runs: list[Run]) -> list[float]:
    """Let the runs take turns, task by task, and return the seconds of each."""
    seconds = [0.0] * len(runs)
    for _ in range(TASKS):
        for i, run in enumerate(runs):
            began = time.perf_counter()
            next(run)
            seconds[i] += time.perf_counter() - began
    return seconds


def compared(name: str, data: Examples, phases: list[Phase]) -> tuple[list[float], float]:
    """Run ours and the hand-written loop once.

    Returns:
        The seconds of both, and the relative distance between their final weights.
    """
    cue = name in TASK_AWARE
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
    """Return the rows that the streams will show, by task.

    With `meta` batches an iteration, meta-training comes first, as a phase of its own.
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
    """Return the rows that meta-training will be shown, (iterations, steps, BATCH)."""
    rng = np.random.default_rng(0)
    return np.stack(
        [
            shown(world, int(rng.choice(TASKS)), steps, int(rng.integers(2**31)))
            for _ in range(iterations)
        ]
    )


def table(names: list[str], data: Examples, updates: int, rounds: int) -> None:
    """Check and time the strategies, and print a row for each.

    Raises:
        SystemExit: If the weights of ours and by hand differ by TOLERANCE or more.
    """
    print("| strategy | ours, s | by hand, s | ratio | apart after the check |")
    print("|---|---|---|---|---|")
    plans = {
        meta: planned(data, updates, meta) for meta in {META.get(HAND[name], 0) for name in names}
    }
    for name in names:
        meta = META.get(HAND[name], 0)
        phases, short = plans[meta], planned(data, CHECKED, meta)
        # in single precision, rounding errors decide which units are on, and grow from there
        torch.set_default_dtype(torch.float64)
        apart = compared(name, data, short)[1]
        torch.set_default_dtype(torch.float32)
        if not apart < TOLERANCE and name not in DIFFERENT:
            raise SystemExit(
                f"{name}: the final weights differ by {apart:.0e} of the distance they moved; "
                f"it must be below {TOLERANCE}"
            )
        seconds = [compared(name, data, phases)[0] for _ in range(rounds)]
        ours_s, hand_s = (statistics.median(column) for column in zip(*seconds, strict=True))
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
