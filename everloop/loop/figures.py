"""Pictures of results."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from everloop.contract import Metric
from everloop.loop.result import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def axis_label(metric: Metric) -> str:
    """The metric's name with its unit, or what its ends mean."""
    if metric.unit:
        return f"{metric.name} ({metric.unit})"
    return "score (0 random, 1 best)" if metric.name == "score" else metric.name


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches that no window knows of."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=100)
    FigureCanvasAgg(figure)
    return figure


def colors(count: int) -> list[Any]:
    """As many colours as there are lines, which can be told apart as far as possible."""
    from matplotlib import colormaps

    if count <= 10:
        return [colormaps["tab10"](i) for i in range(count)]
    if count <= 20:
        return [colormaps["tab20"](i) for i in range(count)]
    return [colormaps["turbo"]((i + 0.5) / count) for i in range(count)]


def curves_figure(result: Result, title: str = "") -> Figure:
    """Every task's score over the steps of training, with a mark where each phase begins."""
    tasks = len(result.tasks)
    figure = new_figure(6.4 + (2.0 if tasks > 20 else 0.0), max(3.6, 0.9 + 0.19 * min(tasks, 25)))
    axes: Axes = figure.subplots()
    steps = [now.step for now in result.evaluations]
    for j, (task, color) in enumerate(zip(result.tasks, colors(tasks), strict=True)):
        known = [(step, now.scores[j]) for step, now in zip(steps, result.evaluations, strict=True) if math.isfinite(now.scores[j])]
        if known:
            axes.plot(*zip(*known, strict=True), color=color, label=_literal(task), marker=".", markersize=4, linewidth=1.3)
    _mark_phases(axes, result)
    axes.set(xlabel="world steps of training", ylabel=axis_label(result.metric), title=_literal(title))
    if result.metric.unit == "%":
        axes.set_ylim(-3, 103)
    if axes.lines:
        figure.legend(loc="outside right upper", fontsize=8, ncols=1 + tasks // 26, title="task")
    return figure


def _mark_phases(axes: Axes, result: Result) -> None:
    """A vertical line where each phase so far begins, its task's name above the plot where there is room for it."""
    begins = [0, *(row.step for row in result.rows)][: len(result.phases)]
    for begin in begins:
        axes.axvline(begin, color="0.6", linewidth=0.8, linestyle=":", zorder=0)
    if len(result.phases) <= 20:
        names = [result.tasks[phase[0]] if len(phase) == 1 else "all tasks" for phase in result.phases]
        above = axes.secondary_xaxis("top")
        above.set_xticks(begins, [_literal(name[:16]) for name in names[: len(begins)]], rotation=45, ha="left", fontsize=7)


def score_matrix_figure(results: Mapping[str, Result]) -> Figure:
    """The score matrices of `results` (title -> result) side by side: row = after which phase, column = on which task."""
    tasks = max(len(result.tasks) for result in results.values())
    rows = max(len(result.scores) + 1 for result in results.values())
    cell = 0.62 if tasks <= 10 else 0.5
    figure = new_figure(len(results) * (2.2 + cell * tasks), 2.2 + 0.34 * rows)
    places = figure.subplots(1, len(results), squeeze=False)[0]
    for axes, (title, result) in zip(places, results.items(), strict=True):
        _draw_matrix(axes, result, title)
    return figure


def _draw_matrix(axes: Axes, result: Result, title: str) -> None:
    rows = [result.before, *result.scores]
    low, high, colormap = _color_range(result)
    image: Any = axes.imshow(rows, vmin=low, vmax=high, cmap=colormap, aspect="auto")
    phases = [result.tasks[phase[0]] if len(phase) == 1 else "all tasks" for phase in result.finished]
    axes.set_yticks(range(len(rows)), ["before", *(f"after {_literal(name)}" for name in phases)], fontsize=8)
    axes.set_xticks(
        range(len(result.tasks)), [_literal(task) for task in result.tasks], rotation=45, ha="right", rotation_mode="anchor", fontsize=8
    )
    axes.set_title(_literal(title), fontsize=10)
    for i, row in enumerate(rows):
        for j, score in enumerate(row):
            if math.isfinite(score):
                shade = sum(image.to_rgba(score)[:3]) / 3
                axes.text(j, i, result.metric.text(score), ha="center", va="center", fontsize=7, color="white" if shade < 0.5 else "black")
    axes.figure.colorbar(image, ax=axes, label=axis_label(result.metric), shrink=0.8)


def _color_range(result: Result) -> tuple[float, float, str]:
    """(lowest, highest, colour map): 0 to 100 of percentages, -1 to 1 of scores, of returns what there is."""
    if result.metric.unit == "%":
        return 0.0, 100.0, "Blues"
    if result.metric.name == "score":
        return -1.0, 1.0, "RdBu"
    known = [score for row in [result.before, *result.scores] for score in row if math.isfinite(score)] or [0.0]
    return min(known), max(known) + 1e-9, "Blues"


def _literal(name: str) -> str:
    """`name` as matplotlib shows it as it is: a dollar sign begins no formula, an underscore hides no line of a legend."""
    text = name.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text
