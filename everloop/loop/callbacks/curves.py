"""The curves of a run in TensorBoard: their tags, and the charts that show them."""

from __future__ import annotations

import re

from everloop.contract import SCORE, Metric
from everloop.loop.results.metrics import mean
from everloop.loop.results.result import MEASURES, Result


def curve(group: str, result: Result, name: str) -> str:
    """Return a curve's tag. It contains the scenario, since scenarios may differ in their units.

    Parentheses in the scenario's name become brackets: the Custom Scalars page would read the text
    after the first "(" as the name of the run, and draw no curve.
    """
    scenario = result.scenario.replace("(", "[").replace(")", "]")
    return "/".join(part for part in (group, scenario, name) if part)


def average_forgetting(result: Result) -> float | None:
    """Return the mean forgetting of the tasks not in training, at the latest evaluation.

    At the end of a phase it equals `result.forgetting` if all scores are known. Tasks whose
    forgetting is unknown are left out; None if no task is left.
    """
    now = result.evaluations[-1]
    in_training = [] if now.phase is None else result.phases[now.phase]
    values = [v for j, v in enumerate(result.forgetting_now()) if j not in in_training]
    return mean([v for v in values if v is not None])


def change_unit(metric: Metric) -> str:
    """Return the unit of a difference of two scores; the metric's name if it has no unit."""
    return "percentage points" if metric.unit == "%" else metric.unit or metric.name


def titles(metric: Metric) -> dict[str, str]:
    """Return measure -> a readable title, with the unit if there is one."""
    level = f" ({metric.unit})" if metric.unit else ""
    if metric == SCORE:
        level = " (0 random, 1 best known)"
    return {
        "average_score": f"average {metric.name}{level}",
        "forgetting": f"forgetting ({change_unit(metric)})",
        "average_incremental_score": f"average incremental {metric.name}{level}",
        "backward_transfer": f"backward transfer ({change_unit(metric)})",
        "one_step_backward_transfer": f"one-step backward transfer ({change_unit(metric)})",
        "forward_transfer": f"forward transfer ({change_unit(metric)})",
        "learning_accuracy": f"learning accuracy ({metric.unit or metric.name})",
        "anytime_score": f"anytime {metric.name}{level}",
        "min_accuracy": f"min-ACC{level}",
        "worst_case_accuracy": f"worst-case accuracy, WC-ACC{level}",
        "online_accuracy": "online accuracy (%)",
        "online_return": "mean return of the episodes in training",
    }


def charts(result: Result) -> dict[str, str]:
    """Return chart title -> regular expression that matches the tag of the chart's one curve.

    Average score and forgetting have a point at every evaluation; their curves are in the group
    average/. The other measures have a point at the end of each phase. Measures that can't be
    computed in any phase have no chart.
    """
    tags = {name: curve("measures", result, name) for name in MEASURES}
    tags["average_score"] = curve("average", result, "score")
    tags["forgetting"] = curve("average", result, "forgetting")
    return {
        title: rf"^{re.escape(tags[name])}\Z"
        for name, title in titles(result.metric).items()
        if name in result.applicable
    }
