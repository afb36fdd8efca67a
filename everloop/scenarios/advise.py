"""Which strategies fit: `everloop advise`."""

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
"""What the literature and our own tables put first; what is not named comes after, in the order of
the registry.
"""


UNTOLD = {"icarl"}
"""What is refused where the task is told at test time."""

HIDDEN: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("adapters online", {"task_id": False, "grows": False})
}
"""The setting with which a strategy does without being told the task, and what that makes of its
traits.
"""


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
    known = [
        *[name for name in ORDER[kind] if name in STRATEGIES],
        *[name for name in STRATEGIES if name not in ORDER[kind]],
    ]
    found = [_judge(name, STRATEGIES[name].traits, now) for name in known]
    return sorted(found, key=lambda a: (not a.fits, a.plasticity))


def _judge(name: str, traits: Traits, now: Situation) -> Advice:
    setting = ""
    if now.task_id == "hidden" and name in HIDDEN:
        setting, changed = HIDDEN[name]
        traits = replace(traits, **changed)
    why_not = [
        (now.world == "control" and not traits.control, "learns from labels"),
        (now.world != "control" and not traits.streams, "learns from a policy's outputs"),
        (now.boundaries == "unknown" and traits.boundaries, "has to be told when a task ends"),
        (now.task_id == "hidden" and traits.task_id, "has to be told the task at test time"),
        (
            now.task_id == "told" and name in UNTOLD,
            "tells the classes of all tasks apart, which nobody has to where the task is told",
        ),
        (now.examples == 0 and traits.examples, "stores examples"),
        (
            now.world == "stream" and traits.several_passes,
            "needs several passes over a task's examples",
        ),
    ]
    reasons = [reason for applies, reason in why_not if applies]
    if (
        not reasons
        and now.class_incremental
        and not traits.class_incremental
        and not traits.plasticity
    ):
        reasons = ["new classes' loss pushes the old ones' logits down all the same"]
    copies = traits.copies * (now.tasks if traits.grows else 1)
    keeps = [f"{_bytes(4 * copies * now.weights)} more memory"] if copies else []
    keeps += [f"up to {now.examples} examples"] if traits.examples else []
    keeps += [f"with {setting}"] if setting else []
    keeps += (
        [f"needs a network such as split-mnist's with --architecture {traits.network}"]
        if traits.network
        else []
    )
    return Advice(
        name, "; ".join(reasons or keeps or ["nothing kept"]), not reasons, traits.plasticity
    )


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
    traits = STRATEGIES[fitting[0].name].traits
    if traits.examples:
        words.append(f"--{fitting[0].name}.capacity {now.examples}")
    if fitting[0].name == "lora" and now.task_id == "hidden":
        words.append("--lora.adapters online")
    if fitting[0].name == "replay" and now.boundaries == "unknown":
        words.append("--replay.current true")
    return " ".join(words)


def remarks(now: Situation, advice: list[Advice]) -> list[str]:
    """What the table does not say."""
    said = []
    if now.class_incremental and not any(a.fits and not a.plasticity for a in advice):
        said.append(
            "Without stored examples nothing here tells classes of different tasks apart, unless a "
            "pre-trained network is frozen."
        )
    if now.boundaries == "unknown" and any(a.name == "replay" and a.fits for a in advice):
        said.append(
            "Give replay --replay.current true: it then rehearses all that it stores, the task at "
            "hand included."
        )
    if now.task_id == "told" and now.world != "control":
        said.append("Use scenario_type task: a head for each task does more than any strategy.")
    return said
