"""`everloop advise`: which strategies fit a problem, and why the others do not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from everloop.loop import STRATEGIES
from everloop.loop.strategies import Traits
from everloop.loop.strategies.base import check_choice

ORDER = {
    # Wolczyk et al. 2021 and 2022 (Continual World): behavioural cloning before PackNet before
    # penalties; Rolnick et al. 2019
    "control": ["replay", "packnet", "clear", "derpp", "ewc", "mas", "si", "l2"],
    # van de Ven et al. 2022, table 2; Caccia et al. 2022; Buzzega et al. 2020; Aljundi et al. 2019
    "class": ["er_ace", "derpp", "replay", "mir", "der", "icarl", "gdumb", "agem", "gem"],
    # van de Ven et al. 2022, table 2; Mallya & Lazebnik 2018; Serra et al. 2018, table 1; Lopez-Paz
    # & Ranzato 2017
    "other": [
        "replay",
        "derpp",
        "packnet",
        "hat",
        "lwf",
        "si",
        "ewc",
        "mas",
        "rwalk",
        "ewc_kfac",
        "gem",
        "agem",
        "er_ace",
        "mir",
    ],
}
"""Strategies by kind of problem, best first, after the literature and our own tables.

Strategies that are not listed come last, in the order of the registry.
"""
UNTOLD = {"icarl"}
"""Strategies that a task-incremental problem rules out: they need no task ID at test time."""

HIDDEN: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("adapters online", {"task_id": False, "grows": False})
}
"""Strategy -> (the setting with which it works without the task ID, the traits that this changes).
"""


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
    known = [
        *[name for name in ORDER[kind] if name in STRATEGIES],
        *[name for name in STRATEGIES if name not in ORDER[kind]],
    ]
    found = [_advice(name, STRATEGIES[name].traits, now) for name in known]
    return sorted(found, key=lambda a: (not a.fits, a.plasticity))


def _advice(name: str, traits: Traits, now: Situation) -> Advice:
    setting = ""
    if now.task_id == "hidden" and name in HIDDEN:
        setting, changed = HIDDEN[name]
        traits = replace(traits, **changed)
    why_not = [
        (now.world == "control" and not traits.control, "needs labels"),
        (now.world != "control" and not traits.streams, "needs a policy"),
        (now.boundaries == "unknown" and traits.boundaries, "needs to know when a task ends"),
        (now.task_id == "hidden" and traits.task_id, "needs the task ID at test time"),
        (
            now.task_id == "told" and name in UNTOLD,
            "distinguishes the classes of all tasks, which is not needed with the task ID",
        ),
        (now.examples == 0 and traits.examples, "needs stored examples"),
        (
            now.world == "stream" and traits.several_passes,
            "needs several passes over each task's examples",
        ),
    ]
    reasons = [reason for applies, reason in why_not if applies]
    if (
        not reasons
        and now.class_incremental
        and not traits.class_incremental
        and not traits.plasticity
    ):
        reasons = ["does not stop the loss on new classes from lowering the logits of old ones"]
    copies = traits.copies * (now.tasks if traits.grows else 1)
    keeps = [f"{_bytes(4 * copies * now.weights)} of extra memory"] if copies else []
    keeps += [f"up to {now.examples} examples"] if traits.examples else []
    keeps += [f"the setting {setting}"] if setting else []
    keeps += (
        [f"a network such as split-mnist's with --architecture {traits.network}"]
        if traits.network
        else []
    )
    return Advice(name, "; ".join(reasons or keeps or ["nothing"]), not reasons, traits.plasticity)


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
    traits = STRATEGIES[fitting[0].name].traits
    if traits.examples:
        words.append(f"--{fitting[0].name}.capacity {now.examples}")
    if fitting[0].name == "lora" and now.task_id == "hidden":
        words.append("--lora.adapters online")
    if fitting[0].name == "replay" and now.boundaries == "unknown":
        words.append("--replay.current true")
    return " ".join(words)


def remarks(now: Situation, advice: list[Advice]) -> list[str]:
    """Return hints that are not in the tables, one sentence each."""
    said = []
    if now.class_incremental and not any(a.fits and not a.plasticity for a in advice):
        said.append(
            "Without stored examples no strategy here can distinguish the classes of different "
            "tasks, unless the network is pre-trained and frozen."
        )
    if now.boundaries == "unknown" and any(a.name == "replay" and a.fits for a in advice):
        said.append(
            "Run replay with --replay.current true: without task boundaries it must replay examples"
            " of the current task too."
        )
    if now.task_id == "told" and now.world != "control":
        said.append(
            "Use --scenario-type task: a head for each task helps more than any strategy does."
        )
    return said
