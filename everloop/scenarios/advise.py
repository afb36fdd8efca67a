"""Which strategies fit: `everloop advise`."""

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
        world: What is learned from: batch, stream or control. batch is a stream with several passes
            over each task's examples, stream a single pass, and control reinforcement learning.
        boundaries: Whether the start and the end of each task are known.
        task_id: Whether the task ID is available at test time: told (yes) or hidden (no).
        classes: Whether each task brings new classes (new) or all share them (same); for streams.
        examples: Number of examples that may be stored, 0 or more.
        weights: Number of weights of the network, 0 or more.
        tasks: Number of tasks expected, 1 or more.

    Raises:
        ValueError: For a value outside these ranges; it names the value.
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
                raise ValueError(f"{name} is {getattr(self, name)}, allowed: 0 or more")
        if self.tasks < 1:
            raise ValueError(f"tasks is {self.tasks}, allowed: 1 or more")

    @property
    def class_incremental(self) -> bool:
        """Whether all tasks' classes are to be told apart."""
        return self.world != "control" and self.task_id == "hidden" and self.classes == "new"


@dataclass(frozen=True)
class Advice:
    """A strategy, and why it does not fit, or what it keeps if it does."""

    name: str
    reason: str
    fits: bool
    plasticity: bool


def advise(now: Situation) -> list[Advice]:
    """All strategies: those that fit, the best first, then the others."""
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
        "; ".join(reasons or _cost(traits, settings, now) or ["nothing kept"]),
        not reasons,
        traits.plasticity,
    )


def _reasons_against(traits: Traits, now: Situation) -> list[str]:
    why_not = [
        (now.world == "control" and not traits.control, "learns from labels"),
        (now.world != "control" and not traits.streams, "learns from a policy's outputs"),
        (now.boundaries == "unknown" and traits.boundaries, "has to be told when a task ends"),
        (now.task_id == "hidden" and traits.task_id, "has to be told the task at test time"),
        (
            now.task_id == "told" and traits.one_head,
            "tells the classes of all tasks apart, which nobody has to where the task is told",
        ),
        (now.examples == 0 and traits.examples, "stores examples"),
        (
            now.world == "stream" and traits.several_passes,
            "needs several passes over a task's examples",
        ),
    ]
    reasons = [reason for applies, reason in why_not if applies]
    helps = traits.class_incremental or traits.plasticity or not now.class_incremental
    if not reasons and not helps:
        reasons = ["new classes' loss pushes the old ones' logits down all the same"]
    return reasons


def _cost(traits: Traits, settings: Mapping[str, Any], now: Situation) -> list[str]:
    """Return what a strategy keeps and needs."""
    copies = traits.copies * (now.tasks if traits.grows else 1)
    keeps = [f"{_bytes(4 * copies * now.weights)} more memory"] if copies else []
    keeps += [f"up to {now.examples} examples"] if traits.examples else []
    keeps += [f"with {name} {value}" for name, value in settings.items()]
    if traits.network:
        keeps.append(f"needs a network such as split-mnist's with --architecture {traits.network}")
    return keeps


def by_reason(advice: list[Advice]) -> dict[str, list[str]]:
    """Reason -> the names of the strategies with that reason, in the order in which they come."""
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
    """What to run next: the first strategy that fits, in the built-in scenario that is most like
    the situation.

    Strategies that need a network of their own, which that scenario has not, are passed over.
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
    """What the table does not say."""
    said = []
    if now.class_incremental and not any(a.fits and not a.plasticity for a in advice):
        said.append(
            "Without stored examples nothing here tells classes of different tasks apart, unless a "
            "pre-trained network is frozen."
        )
    if now.task_id == "told" and now.world != "control":
        said.append("Use scenario_type task: a head for each task does more than any strategy.")
    return said
