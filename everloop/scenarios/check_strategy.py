"""The contract of a strategy as an executable check, for strategies of your own too."""

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
    """Check that a strategy keeps the contract of strategies.

    The strategy runs on scikit-learn's digits, with a small network and a head for each task.
    These must hold:

    1. The strategy changes training, and all weights stay finite.
    2. It draws from its own generator, so torch's global generator ends where plain training
        leaves it.
    3. Its state, saved in the middle of a task and loaded into a new run, continues bit for bit.
    4. A saved state does not change afterwards.
    5. The network may get new weights during training (skipped if the strategy itself adds
        weights).
    6. It works in mixed precision.

    Args:
        make: Function without arguments that returns a new strategy. With its settings, everything
            that the strategy does must happen within about 20 batches of 8 images.
        training: Options of training, such as the learning rate.

    Raises:
        AssertionError: In one sentence, if the strategy breaks the contract.
        ValueError: If the strategy refuses task-incremental digits.
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
    _require(not _same(*ends), f"{name} changes nothing: plain training ends at the same weights")
    _require(
        all(bool(torch.isfinite(w).all()) for w in ends[1]),
        f"{name} leads to weights that are not finite",
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
        f"a saved state of {name} changes while training continues; save copies",
    )
    second.load_state_dict(state)
    second.go()
    ends = [list(run.learner.module.parameters()) for run in (first, second)]
    hint = "list every attribute that changes in `state`"
    _require(_same(*ends), f"{name} resumed from a saved state ends at other weights; {hint}")


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
        for split in ("train", "test")
    ]
    worlds[0].reset(seed=seed)
    backbone = (GrowingMLP if growing else MLP)((8, 8, 1), (16, 16))
    learner = SupervisedLearner(Classifier(backbone, 2, tasks=5), worlds[0], training)
    learner.seed(seed)
    return Run(
        learner,
        Plan([[0], [1], [2]], [STEPS] * 3, 10**9),
        worlds[1],
        strategies,
    )


def _trained(
    strategies: Sequence[Strategy], training: Training, growing: bool = False
) -> tuple[Run, Tensor]:
    """Return a finished run and the state of torch's global generator after it."""
    run = _run(strategies, training, growing=growing)
    run.go()
    return run, torch.get_rng_state()


def _flat(value: Any) -> list[Any]:
    """Return every leaf of a nested state."""
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
