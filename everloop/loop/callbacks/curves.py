"""The curves of a run in TensorBoard: what they are called, and which charts show them."""

from __future__ import annotations

import re

from everloop.contract import SCORE, Metric
from everloop.loop.results.metrics import mean
from everloop.loop.results.result import MEASURES, Result


def curve(group: str, result: Result, name: str) -> str:
    """A tag that holds the scenario, so that numbers in different units never share a chart.

    Custom Scalars take what follows a tag's first ( for the run's name, and draw nothing; so it
    becomes a [.
    """
    scenario = result.scenario.replace("(", "[").replace(")", "]")
    return "/".join(part for part in (group, scenario, name) if part)


def average_forgetting(result: Result) -> float | None:
    """The mean forgetting, at the latest evaluation, of the tasks that are not being trained.

    At the end of a phase it equals `result.forgetting`.
    """
    now = result.evaluations[-1]
    trained = [] if now.phase is None else result.phases[now.phase]
    values = [v for j, v in enumerate(result.forgetting_now()) if j not in trained]
    return mean([v for v in values if v is not None])


def change(metric: Metric) -> str:
    """The unit of a difference of two scores."""
    return "percentage points" if metric.unit == "%" else metric.unit or metric.name


def titles(metric: Metric) -> dict[str, str]:
    """What each measure is called where people read it, with its unit."""
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
    """The title of each chart -> a regular expression that matches the tag of its curve alone.

    Average and forgetting are shown at every evaluation, the other measures after each phase.
    """
    tags = {name: curve("measures", result, name) for name in MEASURES}
    tags["average_score"] = curve("average", result, "score")
    tags["forgetting"] = curve("average", result, "forgetting")
    return {title: rf"^{re.escape(tags[name])}\Z" for name, title in titles(result.metric).items()}
