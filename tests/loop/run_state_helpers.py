"""Runs of every kind of learner, and their whole state as a list to compare."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from loop_helpers import control_learner, mlp, off_policy_learner, off_policy_world, plant, stream

from everloop.loop import (
    EWC,
    Learner,
    Plan,
    Replay,
    Run,
    Strategy,
    SupervisedLearner,
    Training,
)

Setting = tuple[Learner, Any]
"""A learner and a world for evaluation."""

OPTIONS = {
    "plain": Training(1e-2),
    "accumulate": Training(accumulate=3),
    "repeats": Training(updates_per_batch=2),
    "augment": Training(augment="crop_flip"),
    "balanced": Training(balanced=True),
    "cosine": Training(rate="cosine"),
    "plateau": Training(rate="plateau"),
    "drift": Training(rate="drift"),
}


def stream_setting(training: Training, seed: int) -> Setting:
    return (
        SupervisedLearner(mlp(seed=seed), stream(seed=seed), training),
        stream(16, split="test"),
    )


def ppo_setting(recurrent: bool, seed: int) -> Setting:
    learner = control_learner(recurrent, seed=seed)
    return learner, plant(5)


def off_policy_setting(sac: bool, seed: int) -> Setting:
    return off_policy_learner(sac, seed=seed), off_policy_world(sac, 5)


SETTINGS: dict[str, Callable[[int], Setting]] = {
    **{
        name: lambda seed, training=training: stream_setting(training, seed)
        for name, training in OPTIONS.items()
    },
    "ppo": lambda seed: ppo_setting(False, seed),
    "recurrent ppo": lambda seed: ppo_setting(True, seed),
    "dqn": lambda seed: off_policy_setting(False, seed),
    "sac": lambda seed: off_policy_setting(True, seed),
}


def make_run(kind: str, seed: int, strategies: list[Strategy]) -> Run:
    """A run of three phases."""
    learner, evaluation = SETTINGS[kind](seed)
    learner.seed(seed)
    plan = Plan([[0], [1], [0]], [80, 80, 48], eval_every=24, seed=5)
    return Run(learner, plan, evaluation, strategies)


def ewc_and_replay(seed: int = 0) -> list[Strategy]:
    return [EWC(50.0, seed=seed), Replay(capacity=30, batch_size=4, seed=seed)]


def flat(value: Any) -> list[Any]:
    """All keys and values of a nested state."""
    if isinstance(value, dict):
        return [x for key in value for x in (str(key), *flat(value[key]))]
    if isinstance(value, list | tuple):
        return [x for part in value for x in flat(part)]
    return [value.tolist()] if hasattr(value, "tolist") else [value]


def final_state(run: Run) -> list[Any]:
    """The state and result of a run, without its duration."""
    return (
        flat(run.learner.learned())
        + flat(run.learner.position())
        + flat(replace(run.result, wall_seconds=0.0).to_dict())
    )
