"""The text card that explains a run in TensorBoard."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from everloop.contract import RETURN
from everloop.loop.callbacks.curves import change_unit, curve
from everloop.loop.callbacks.events import Setting
from everloop.loop.results.figures import heading, quantity
from everloop.loop.results.result import Result

SCORES = {
    "average_score": "mean score of the tasks trained so far",
    "average_incremental_score": "mean of average_score over the phases so far",
    "learning_accuracy": "mean of the scores that tasks had right after their own training",
    "anytime_score": "mean over all steps so far of the average score of the tasks seen",
    "min_accuracy": "mean over earlier tasks of the lowest score since their own training",
    "worst_case_accuracy": "(present phase's mean score + (k - 1) min_accuracy) / k in phase k",
    "online_accuracy": "accuracy on each example before its update, over all steps so far",
    "online_return": "mean return of the episodes that have ended in training so far",
}
CHANGES = {
    "forgetting": "mean over earlier tasks of the best score after a phase minus the score now",
    "backward_transfer": "mean over earlier tasks of the score now minus that after training",
    "one_step_backward_transfer": "mean over earlier tasks of the change by the very next phase",
    "forward_transfer": "mean over later tasks of the score before training minus untrained score",
}
"""What the measures mean: those in the unit of a score, and those that are differences."""

FORGETTING = """best score after a phase since the task's first training, minus its score now;
negative where it has improved"""
KL = """how far the outputs on the task's examples have moved since its end, as mean KL(then, now):
`network` by the change of all weights, any other module by the change of its own weights alone"""
DISTANCE = """distance of the module's weights from those at the task's end, relative to their
norm"""

RETURNS = """Scores are **returns**, sums of rewards over an episode; their scale differs from task
to task. A world gives a scale from 0 (random) to 1 (best known) by a method
`reference(task) -> (random, best)`, which names those two returns of a task."""


def identity(result: Result) -> dict[str, Setting]:
    """Return what identifies a run, besides its settings."""
    strategies = ", ".join(result.strategies)
    return {"scenario": result.scenario, "strategies": strategies, "seed": float(result.seed)}


def flattened(settings: Mapping[str, Any]) -> dict[str, Setting]:
    """Return `settings` without nesting: "outer.inner" -> True or False, a number or a text."""
    flat: dict[str, Setting] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat |= {f"{name}.{inner}": v for inner, v in flattened(value).items()}
        else:
            flat[name] = _setting(value)
    return flat


def _setting(value: Any) -> Setting:
    """Return a value as TensorBoard can show it. A number that is not finite becomes a text."""
    if isinstance(value, bool):
        return value
    if isinstance(value, (int, float)) and math.isfinite(value):
        return float(value)
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def about(result: Result, settings: Mapping[str, Setting], command: str) -> str:
    """Return the card in Markdown: the run, its settings, and the meaning of each curve.

    Args:
        result: The result of the run, which may still be in progress.
        settings: Settings without nesting.
        command: The command that started the run; empty if there is none.
    """
    names = [f"{j} {_code(name)}" for j, name in enumerate(result.tasks)]
    rows = [(_code(name), _text(value)) for name, value in settings.items()]
    parts = [
        f"# {html.escape(heading(result)) or 'A run'}",
        _code(command) if command else "",
        f"Tasks by number: {', '.join(names)}.",
        RETURNS if result.metric == RETURN else "",
        "## What the curves show",
        _table(("curve", "what it shows, and its unit"), _curves(result)),
        "## Settings",
        _table(("setting", "value"), rows),
    ]
    return "\n\n".join(part for part in parts if part)


def _curves(result: Result) -> list[tuple[str, str]]:
    """Return the tag and the meaning of each curve."""
    unit, difference = quantity(result.metric), change_unit(result.metric)
    meanings = [(k, v, unit) for k, v in SCORES.items()]
    meanings += [(k, v, difference) for k, v in CHANGES.items()]
    average = curve("average", result, "score"), curve("average", result, "forgetting")
    rows = {
        "score/<task>": f"every task's score at every evaluation; {unit}",
        "forgetting/<task>": f"{FORGETTING}; {difference}",
        average[0]: f"mean score of the tasks seen so far; {unit}",
        average[1]: f"mean forgetting of these tasks except the one in training; {difference}",
        **{
            curve("measures", result, k): f"after each phase, {v}; {u}"
            for k, v, u in meanings
            if k in result.applicable
        },
        "task/index": "number of the task in training",
        "divergence/kl/<task>/<module>": f"{KL}; nats",
        "divergence/weights/<task>/<module>": DISTANCE,
        "train/...": "what the learner reports: loss, gradient norm, ...",
    }
    return [(_code(tag), text.replace("\n", " ")) for tag, text in rows.items()]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _text(value: Setting) -> str:
    """Return a setting in Markdown."""
    text = f"{value:.10g}" if isinstance(value, float) else str(value)
    return _code(text) if text else ""


def _code(text: str) -> str:
    """Return `text` as inline code in Markdown, so that it is shown literally on one line."""
    line = text.replace("\n", " ")
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    return f"{fence}{line}{fence}" if len(fence) == 1 else f"{fence} {line} {fence}"
