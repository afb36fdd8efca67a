"""Every strategy, with settings that make it act within a few steps, and learners for it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from loop_helpers import (
    control_learner,
    learn_tasks,
    off_policy_learner,
    off_policy_world,
    plant,
    stream,
    weights,
)
from torch import Tensor

from everloop.agents import MLP, Classifier, GrowingMLP, ProgressiveMLP
from everloop.loop import STRATEGIES, Gaussian, Learner, Strategy, SupervisedLearner, Training

ACTIVE_SETTINGS: dict[str, dict[str, Any]] = {
    "replay": {"capacity": 40, "batch_size": 8},
    "der": {"capacity": 40, "batch_size": 8},
    "derpp": {"capacity": 40, "batch_size": 8},
    "er_ace": {"capacity": 40, "batch_size": 8},
    "mir": {"capacity": 40, "batch_size": 8, "candidates": 12},
    "gdumb": {"capacity": 40, "epochs": 2},
    "icarl": {"capacity": 40, "batch_size": 8},
    "clear": {"capacity": 40, "batch_size": 8},
    "gem": {"capacity": 40, "batch_size": 8},
    "agem": {"capacity": 40, "batch_size": 8},
    "ewc_kfac": {"strength": 1.0},
    "rwalk": {"interval": 3},
    "packnet": {"retrain_steps": 5, "batch_size": 16},
    "hat": {"period": 4, "rate": 0.5},
    "continual_backprop": {"replacement_rate": 0.05, "maturity": 4, "interval": 2},
    "l2_init": {"strength": 0.1},
    "lora": {"rank": 2},
    "la_maml": {"capacity": 40, "batch_size": 8},
    "growth": {"units": 3, "threshold": 0.0, "patience": 5},
}
"""Settings that make a strategy act within a few steps."""

INACTIVE_SETTINGS: dict[str, dict[str, Any]] = {
    "derpp": {"strength": 0.0, "label_strength": 0.0},
    "gdumb": {"epochs": 0},
    "packnet": {"share": 0.0},
    "hat": {"masks": False},
    "lora": {"rank": 0},
    "progressive": {"columns": False},
    "growth": {"units": 0},
    "continual_backprop": {"replacement_rate": 0.0},
    "shrink_and_perturb": {"shrink": 1.0, "noise": 0.0},
}
"""Settings that make a strategy without a strength inactive."""

ARCHITECTURES = {"progressive": ProgressiveMLP, "growing": GrowingMLP}

TRAITS = {name: strategy.traits for name, strategy in STRATEGIES.items()}

CONTROL_ONLY = {name for name, traits in TRAITS.items() if not traits.streams}
LABELS_ONLY = {name for name, traits in TRAITS.items() if not traits.control}
NETWORKS = {name: ARCHITECTURES[t.network] for name, t in TRAITS.items() if t.network}
TASK_AWARE_ONLY = {name for name, traits in TRAITS.items() if traits.task_id}
TASK_AGNOSTIC_ONLY = {name for name, traits in TRAITS.items() if traits.one_head}

STREAM = sorted(set(STRATEGIES) - CONTROL_ONLY)
CONTROL = sorted(set(STRATEGIES) - LABELS_ONLY - set(NETWORKS))


def active(name: str) -> Strategy:
    return STRATEGIES[name](**ACTIVE_SETTINGS.get(name, {}))


def inactive(name: str) -> Strategy:
    return STRATEGIES[name](
        **ACTIVE_SETTINGS.get(name, {}) | INACTIVE_SETTINGS.get(name, {"strength": 0.0})
    )


def stream_learner(name: str = "", training: Training = Training()) -> SupervisedLearner:  # noqa: B008
    """A small network on digits, with one head per task if the strategy needs the task ID."""
    torch.manual_seed(0)
    world = (
        stream(label_space="within_task", task_cue=True) if name in TASK_AWARE_ONLY else stream()
    )
    outputs = 2 if name in TASK_AWARE_ONLY else 10
    backbone = NETWORKS.get(name, MLP)((8, 8, 1), (12, 12))
    network = Classifier(backbone, outputs, tasks=5 if name in TASK_AWARE_ONLY else 1)
    return SupervisedLearner(network, world, training)


def control(name: str = "") -> Learner:
    return control_learner(world=plant(task_cue=True), parameters={"batch_size": 16})


def world_of(learner: Learner) -> Any:
    """Return a world like the learner's, for the examples at a task's end."""
    if learner.labelled:
        label_space = "within_task" if learner.task_aware else "global"
        return stream(task_cue=learner.task_aware, label_space=label_space)
    return off_policy_world(sac=isinstance(learner.likelihood, Gaussian), num_envs=6, task_cue=True)


def train(
    learner: Learner, strategies: list[Strategy], tasks: list[int], attach: bool = True
) -> None:
    """Learn `tasks` one after the other."""
    if attach:
        learner.attach(strategies)
    learn_tasks(learner, tasks, steps=64 if learner.labelled else 32, world=world_of(learner))


def end_of_training(kind: str, name: str, strategies: list[Strategy]) -> list[Tensor]:
    """Return the weights after three tasks with the learner that the strategy `name` needs."""
    learner = BUILDERS[kind](name)
    learner.seed(0)
    train(learner, strategies, [0, 1, 2])
    return weights(learner.module)


def plain_end(kind: str, name: str) -> list[Tensor]:
    """Return the weights after three tasks without strategies."""
    # one of the strategies whose learner is the same, so that it is trained once
    same_learner = name if name in NETWORKS else "hat" if name in TASK_AWARE_ONLY else ""
    return _plain_end(kind, same_learner if kind == "stream" else "")


@cache
def _plain_end(kind: str, name: str) -> list[Tensor]:
    return end_of_training(kind, name, [])


def dqn(name: str = "") -> Learner:
    return off_policy_learner(world=off_policy_world(sac=False, task_cue=True))


def sac(name: str = "") -> Learner:
    return off_policy_learner(sac=True, world=off_policy_world(sac=True, task_cue=True))


def recurrent_control(name: str = "") -> Learner:
    return control_learner(recurrent=True, world=plant(task_cue=True))


BUILDERS: dict[str, Callable[[str], Learner]] = {
    "stream": stream_learner,
    "control": control,
    "recurrent control": recurrent_control,
    "dqn": dqn,
    "sac": sac,
}
