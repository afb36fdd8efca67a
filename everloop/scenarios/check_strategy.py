"""What every strategy must keep, executable for anybody's own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from everloop.agents import MLP, Classifier, GrowingMLP
from everloop.envs import make_vec
from everloop.loop import Effect, Growth, Plan, Run, Strategy, SupervisedLearner, Training

COPIES, STEPS = 8, 64


def check_strategy(
    make: Callable[[], Strategy],
    training: Training = Training(device="cpu"),  # noqa: B008
) -> None:
    """Raise AssertionError, in one sentence, where a strategy breaks what it must keep.

    It is tried on scikit-learn's digits, with a small network and a head for each task:

    1. It changes training, and all weights stay finite.
    2. It draws from a generator of its own: torch's global one is where plain training leaves it.
    3. Saved in the midst of a task and loaded into one made anew, training goes on bit for bit.
    4. A saved state does not change afterwards.
    5. A network may get new weights while it is learned (not asked of one that adds weights
        itself).
    6. It works in mixed precision.

    Args:
        make: Called without arguments, makes the strategy, with settings under which it does all
            that it can within some 20 batches of 8 images.
        training: Options of training, such as the learning rate.

    Raises:
        AssertionError: That names what is broken.
        ValueError: If the strategy refuses class- or task-incremental digits.
    """
    plain, with_it = _trained([], training), _trained([make()], training)
    name = type(make()).name
    ends, drawn = zip(
        *(
            (list(run.learner.module.parameters()), torch_state)
            for run, torch_state in (plain, with_it)
        ),
        strict=True,
    )
    _require(not _same(*ends), f"{name} changes nothing: the weights are those of plain training")
    _require(
        all(bool(torch.isfinite(w).all()) for w in ends[1]),
        f"{name} makes weights that are not finite",
    )
    _require(
        torch.equal(*drawn),
        f"{name} draws from torch's global generator; give it a torch.Generator of its own",
    )
    _check_state(make, training, name)
    if Effect.ADDS_WEIGHTS not in make().effects:
        _trained([make(), Growth(units=2, threshold=0.0, patience=5)], training, growing=True)
    _trained([make()], Training(precision="bfloat16", device="cpu"))


def _check_state(make: Callable[[], Strategy], training: Training, name: str) -> None:
    first, second = _run([make()], training), _run([make()], training, seed=1)
    first.begin()
    while first.steps < 1.5 * STEPS:
        first.advance()
    state = first.state_dict()
    saved = copy.deepcopy(state)
    first.go()
    _require(
        _same(_flat(state), _flat(saved)),
        f"a saved state of {name} changes while training goes on; save copies",
    )
    second.load_state_dict(state)
    second.go()
    ends = [list(run.learner.module.parameters()) for run in (first, second)]
    hint = "name every attribute that changes in `state`"
    _require(
        _same(*ends), f"{name} does not go on from a saved state as it would have without; {hint}"
    )


def _run(
    strategies: Sequence[Strategy], training: Training, seed: int = 0, growing: bool = False
) -> Run:
    torch.manual_seed(seed)
    told: dict[str, Any] = {"label_space": "within_task", "task_cue": True}
    worlds: list[Any] = [
        make_vec(
            "everloop/ImageStream-v0",
            COPIES,
            split=split,
            episode_length=72 if split == "train" else 1,
            **told,
        )
        for split in ("train", "test", "train")
    ]
    worlds[0].reset(seed=seed)
    backbone = (GrowingMLP if growing else MLP)((8, 8, 1), (16, 16))
    learner = SupervisedLearner(Classifier(backbone, 2, tasks=5), worlds[0], training)
    learner.seed(seed)
    return Run(
        learner,
        Plan([[0], [1], [2]], [STEPS] * 3, 10**9, consolidation_steps=4),
        worlds[1],
        worlds[2],
        strategies,
    )


def _trained(
    strategies: Sequence[Strategy], training: Training, growing: bool = False
) -> tuple[Run, Tensor]:
    """A finished run, and where it leaves torch's global generator."""
    run = _run(strategies, training, growing=growing)
    run.go()
    return run, torch.get_rng_state()


def _flat(value: Any) -> list[Any]:
    """Every leaf of a nested state."""
    if isinstance(value, dict):
        return [leaf for part in value.values() for leaf in _flat(part)]
    if isinstance(value, list | tuple):
        return [leaf for part in value for leaf in _flat(part)]
    return [value]


def _same(a: Sequence[Any], b: Sequence[Any]) -> bool:
    if len(a) != len(b):
        return False
    return all(
        bool((x == y).all()) if hasattr(x, "all") else x == y for x, y in zip(a, b, strict=True)
    )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)
