"""The curves of a run in TensorBoard: their tags, and the charts that show them."""

from __future__ import annotations

import re

from everloop.contract import SCORE, Metric
from everloop.loop.results.metrics import mean
from everloop.loop.results.result import MEASURES, Result


def curve(group: str, result: Result, name: str) -> str:
    """Return a tag that contains the scenario, so that different units never share a chart.

    The Custom Scalars page takes the text after the first "(" of a tag for the name of the run, and
    draws nothing. So parentheses become brackets.
    """
    scenario = result.scenario.replace("(", "[").replace(")", "]")
    return "/".join(part for part in (group, scenario, name) if part)


def average_forgetting(result: Result) -> float | None:
    """Return the mean forgetting of the tasks not in training, at the latest evaluation.

    At the end of a phase it equals `result.forgetting`. None if it is unknown.
    """
    now = result.evaluations[-1]
    trained = [] if now.phase is None else result.phases[now.phase]
    values = [v for j, v in enumerate(result.forgetting_now()) if j not in trained]
    return mean([v for v in values if v is not None])


def change(metric: Metric) -> str:
    """Return the unit of a difference of two scores."""
    return "percentage points" if metric.unit == "%" else metric.unit or metric.name


def titles(metric: Metric) -> dict[str, str]:
    """Return a readable title with a unit for each measure, by the name of the measure."""
    level = f" ({metric.unit})" if metric.unit else ""
    if metric == SCORE:
        level = " (0 random, 1 best known)"
    return {
        "average_score": f"average {metric.name}{level}",
        "forgetting": f"forgetting ({change(metric)})",
        "average_incremental_score": f"average incremental {metric.name}{level}",
        "backward_transfer": f"backward transfer ({change(metric)})",
        "forward_transfer": f"forward transfer ({change(metric)})",
        "learning_accuracy": f"learning accuracy ({metric.unit or metric.name})",
        "anytime_score": f"anytime {metric.name}{level}",
    }


def charts(result: Result) -> dict[str, str]:
    """Return a regular expression for each chart's title; it matches the tag of one curve only.

    The average score and forgetting have points at every evaluation, and the other measures after
    each phase.
    """
    tags = {name: curve("measures", result, name) for name in MEASURES}
    tags["average_score"] = curve("average", result, "score")
    tags["forgetting"] = curve("average", result, "forgetting")
    return {title: rf"^{re.escape(tags[name])}\Z" for name, title in titles(result.metric).items()}
