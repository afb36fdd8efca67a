"""`everloop advise`: which strategies fit a problem, and why the others do not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from everloop.loop import STRATEGIES
from everloop.loop.strategies import Traits
from everloop.loop.strategies.base import check_choice


@dataclass(frozen=True)
class Situation:
    """The conditions of a continual-learning problem, for which `everloop advise` ranks strategies.

    Args:
        world: Kind of problem: batch, stream or control. batch makes several passes over each
            task's labelled examples, stream makes one pass, and control is reinforcement learning.
        boundaries: Whether you know when each task begins and ends (known) or not (unknown).
        task_id: Whether the task ID is available at test time (told) or not (hidden).
        classes: Whether each task has new classes (new) or all tasks share the same ones (same).
            Only for batch and stream.
        examples: Number of past examples that you may store, 0 or more.
        weights: Number of weights in your network, 0 or more.
        tasks: Number of tasks that you expect, 1 or more.

    Raises:
        ValueError: If a value is out of range; the message names it.
    """

    world: Literal["batch", "stream", "control"] = "batch"
    boundaries: Literal["known", "unknown"] = "known"
    task_id: Literal["told", "hidden"] = "hidden"
    classes: Literal["new", "same"] = "new"
    examples: int = 1000
    weights: int = 1_000_000
    tasks: int = 10

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            if get_origin(kind) is Literal:
                check_choice(name, getattr(self, name), get_args(kind))
        for name in ("examples", "weights"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more")
        if self.tasks < 1:
            raise ValueError(f"tasks is {self.tasks}; it must be 1 or more")

    @property
    def class_incremental(self) -> bool:
        """True if the network must distinguish the classes of all tasks, without the task ID."""
        return self.world != "control" and self.task_id == "hidden" and self.classes == "new"


@dataclass(frozen=True)
class Advice:
    """What `advise` says about one strategy.

    Args:
        name: The strategy's name.
        reason: What it needs if it fits; otherwise why it does not fit.
        fits: True if it fits the situation.
        plasticity: True if it preserves the ability to learn rather than past tasks.
    """

    name: str
    reason: str
    fits: bool
    plasticity: bool


def advise(now: Situation) -> list[Advice]:
    """Return advice on every strategy: those that fit come first, the best of them in front."""
    kind = "control" if now.world == "control" else "class" if now.class_incremental else "other"
    last = len(STRATEGIES)
    best_first = sorted(STRATEGIES, key=lambda name: STRATEGIES[name].traits.rank.get(kind, last))
    found = [_advice(name, STRATEGIES[name].traits, now) for name in best_first]
    return sorted(found, key=lambda a: (not a.fits, a.plasticity))


def settings_for(traits: Traits, now: Situation) -> dict[str, Any]:
    """Return the settings with which a strategy with these traits fits the situation."""
    settings = dict(traits.without_task_id) if now.task_id == "hidden" else {}
    return settings | (dict(traits.without_boundaries) if now.boundaries == "unknown" else {})


def _advice(name: str, traits: Traits, now: Situation) -> Advice:
    settings = settings_for(traits, now)
    if traits.without_task_id and now.task_id == "hidden":
        traits = replace(traits, task_id=False, grows=False)
    if traits.without_boundaries and now.boundaries == "unknown":
        traits = replace(traits, boundaries=False)
    reasons = _reasons_against(traits, now)
    return Advice(
        name,
        "; ".join(reasons or _cost(traits, settings, now) or ["nothing"]),
        not reasons,
        traits.plasticity,
    )


def _reasons_against(traits: Traits, now: Situation) -> list[str]:
    why_not = [
        (now.world == "control" and not traits.control, "needs labels"),
        (now.world != "control" and not traits.streams, "needs a policy"),
        (now.boundaries == "unknown" and traits.boundaries, "needs to know when a task ends"),
        (now.task_id == "hidden" and traits.task_id, "needs the task ID at test time"),
        (
            now.task_id == "told" and traits.one_head,
            "distinguishes the classes of all tasks, which is not needed with the task ID",
        ),
        (now.examples == 0 and traits.examples, "needs stored examples"),
        (
            now.world == "stream" and traits.several_passes,
            "needs several passes over each task's examples",
        ),
    ]
    reasons = [reason for applies, reason in why_not if applies]
    helps = traits.class_incremental or traits.plasticity or not now.class_incremental
    if not reasons and not helps:
        reasons = ["does not stop the loss on new classes from lowering the logits of old ones"]
    return reasons


def _cost(traits: Traits, settings: Mapping[str, Any], now: Situation) -> list[str]:
    """Return what a strategy keeps and needs."""
    copies = traits.copies * (now.tasks if traits.grows else 1)
    keeps = [f"{_bytes(4 * copies * now.weights)} of extra memory"] if copies else []
    keeps += [f"up to {now.examples} examples"] if traits.examples else []
    keeps += [f"the setting {name} {value}" for name, value in settings.items()]
    if traits.network:
        keeps.append(f"a network such as split-mnist's with --architecture {traits.network}")
    return keeps


def by_reason(advice: list[Advice]) -> dict[str, list[str]]:
    """Return reason -> the names of the strategies with that reason, in the order of `advice`."""
    found: dict[str, list[str]] = {}
    for a in advice:
        found.setdefault(a.reason, []).append(a.name)
    return found


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def next_command(now: Situation, advice: list[Advice]) -> str | None:
    """Return a command that runs the best strategy in a built-in scenario like the situation.

    Strategies that need a special network are skipped, because that scenario does not have one.

    Returns:
        The command line, or None if no strategy fits.
    """
    fitting = [
        a for a in advice if a.fits and not a.plasticity and not STRATEGIES[a.name].traits.network
    ]
    if not fitting:
        return None
    words = ["everloop run", "switching-plant" if now.world == "control" else "split-digits"]
    if now.world != "control":
        kind = "class" if now.class_incremental else "task" if now.task_id == "told" else "domain"
        words.append(f"--scenario-type {kind}")
        words += ["--epochs 1"] if now.world == "stream" else []
    words.append(f"--strategies {fitting[0].name}")
    name = fitting[0].name
    traits = STRATEGIES[name].traits
    settings = {"capacity": now.examples} if traits.examples else {}
    settings |= settings_for(traits, now)
    words += [f"--{name}.{setting} {value}" for setting, value in settings.items()]
    return " ".join(words)


def remarks(now: Situation, advice: list[Advice]) -> list[str]:
    """Return hints that are not in the tables, one sentence each."""
    said = []
    if now.class_incremental and not any(a.fits and not a.plasticity for a in advice):
        said.append(
            "Without stored examples no strategy here can distinguish the classes of different "
            "tasks, unless the network is pre-trained and frozen."
        )
    if now.task_id == "told" and now.world != "control":
        said.append(
            "Use --scenario-type task: a head for each task helps more than any strategy does."
        )
    return said
