"""Pictures of a result: its score matrix and its learning curves, about 0.1 s each for 5 tasks."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from everloop.contract import SCORE, Metric
from everloop.loop.result import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_NAMES = 25  # as many task names or numbers as a picture can hold beside each other
LONGEST_NAME = 40
DPI = 80  # a picture of a few tasks is as wide as TensorBoard's cards, which scale coarsely
CHARACTER = 0.07  # inches, at font size 8
STYLES = ("-", "--", ":", "-.")  # each with ten colours


def heading(result: Result) -> str:
    """What was run, as a title."""
    strategies = ", ".join(result.strategies)
    return ": ".join(part for part in (result.scenario, strategies) if part)


def quantity(metric: Metric) -> str:
    """What scores are, and their unit, as an axis label."""
    if metric.unit:
        return f"{metric.name} ({metric.unit})"
    return "score (0 random, 1 best known)" if metric == SCORE else metric.name


def score_matrix_figure(results: Mapping[str, Result]) -> Figure:
    """The score matrices of `results` (title -> result) side by side.

    Row: after which phase; column: on which task. Colours span 0 to 100 for percentages, -1 to 1
    for scores, and for returns what occurs in `results`. At most 25 tasks have numbers.
    """
    sizes = [_Panel(result) for result in results.values()]
    width = sum(size.axes + size.rows + 1.1 for size in sizes)
    height = max(size.height for size in sizes)
    figure = _figure(width, height)
    grid = figure.subplots(1, len(results), squeeze=False, width_ratios=[s.axes for s in sizes])[0]
    for axes, size, (title, result) in zip(grid, sizes, results.items(), strict=True):
        letters = round(1.3 * size.axes / CHARACTER)
        axes.set_title(_plain(textwrap.fill(title, letters)), fontsize=10)
        _draw_matrix(axes, result, _color_range(result.metric, results.values()))
    return figure


class _Panel:
    """Sizes of one matrix, in inches."""

    def __init__(self, result: Result) -> None:
        labels = max(len(_short(name)) for name in result.tasks)
        self.rows = CHARACTER * max(len(name) for name in _row_names(result))
        self.axes = max(2.4, 0.5 * min(len(result.tasks), MOST_NAMES))
        self.height = 1.0 + 0.36 * min(1 + len(result.rows), MOST_NAMES) + 0.7 * CHARACTER * labels


def _draw_matrix(axes: Any, result: Result, span: tuple[float, float]) -> None:
    rows = [result.before, *result.scores]
    colors = "RdBu" if result.metric == SCORE else "viridis"
    image = axes.imshow(rows, aspect="auto", vmin=span[0], vmax=span[1], cmap=colors)
    columns = _some(len(result.tasks))
    axes.set_xticks(columns, [_label(result.tasks[j]) for j in columns])
    axes.tick_params(labelsize=8)
    for label in axes.get_xticklabels():
        label.set(rotation=45, ha="right", rotation_mode="anchor")
    names = _row_names(result)
    axes.set_yticks(_some(len(rows)), [names[i] for i in _some(len(rows))])
    axes.figure.colorbar(image, ax=axes, label=quantity(result.metric))
    if len(result.tasks) > MOST_NAMES or len(rows) > MOST_NAMES + 1:
        return
    for i, row in enumerate(rows):
        for j, score in enumerate(row):
            ink = "white" if math.isfinite(score) and _dark(image, score) else "black"
            text = result.metric.text(score)
            axes.text(j, i, text, ha="center", va="center", fontsize=8, color=ink)


def _dark(image: Any, score: float) -> bool:
    red, green, blue, _ = image.to_rgba(score)
    return bool(0.299 * red + 0.587 * green + 0.114 * blue < 0.5)


def _color_range(metric: Metric, results: Any) -> tuple[float, float]:
    if metric.unit == "%":
        return 0.0, 100.0
    if metric == SCORE:
        return -1.0, 1.0
    matrices = [[r.before, *r.scores] for r in results if r.metric == metric]
    values = [v for matrix in matrices for row in matrix for v in row if math.isfinite(v)]
    return (min(values), max(values)) if values else (0.0, 1.0)


def _row_names(result: Result) -> list[str]:
    phases = range(len(result.rows))
    return ["before training", *(f"after {_plain(_short(phase_name(result, i)))}" for i in phases)]


def phase_name(result: Result, phase: int) -> str:
    """The name of the task that a phase trains, where it is one."""
    tasks = result.phases[phase]
    if len(tasks) == 1:
        return result.tasks[tasks[0]]
    return "all tasks" if len(set(tasks)) == len(result.tasks) else f"phase {phase + 1}"


def learning_curves_figure(result: Result) -> Figure:
    """Every task's score over the steps of a run, with a mark where each phase begins."""
    names = [_label(name) for name in result.tasks]
    name_width = CHARACTER * max(map(len, names))
    shown, legend_columns = min(len(names), MOST_NAMES), math.ceil(len(names) / MOST_NAMES)
    width = max(3.7, 0.3 * shown) + 0.7 * name_width
    height = max(3.2 + 0.7 * name_width, 0.6 + 0.18 * shown)
    figure = _figure(width + legend_columns * (0.5 + name_width), height)
    axes = figure.add_subplot()
    steps = [now.step for now in result.evaluations]
    lines = []
    for j in range(len(names)):
        scores = [now.scores[j] for now in result.evaluations]
        style = STYLES[j // 10 % len(STYLES)]
        lines += axes.plot(steps, scores, color=f"C{j % 10}", linestyle=style)
    if result.metric.unit == "%":
        axes.set_ylim(-3, 103)
    axes.set_xlim(0, max(1, steps[-1]))
    _mark_phases(axes, result)
    axes.set(xlabel="world steps", ylabel=quantity(result.metric))
    figure.suptitle(_plain(textwrap.fill(heading(result), 50)), fontsize=11)
    figure.legend(
        lines,
        names,
        loc="outside right upper",
        fontsize=8,
        handlelength=1.5,
        ncols=legend_columns,
    )
    return figure


def _mark_phases(axes: Any, result: Result) -> None:
    begins = [0, *(row.step for row in result.rows)][: len(result.phases)]
    named = _some(len(begins))
    for phase, step in enumerate(begins):
        axes.axvline(step, color="0.6", linewidth=1.0, zorder=0)
        if phase in named:
            name = _label(phase_name(result, phase))
            place = {"rotation": 45, "rotation_mode": "anchor", "ha": "left", "va": "bottom"}
            axes.text(step, 1.01, name, transform=axes.get_xaxis_transform(), fontsize=8, **place)


def _some(number: int) -> Sequence[int]:
    """Indices of `number` things, evenly thinned to as many as have room."""
    return range(0, number, math.ceil(number / MOST_NAMES))


def _short(name: str) -> str:
    """`name` on one line of at most 40 characters."""
    line = " ".join(name.split())
    return line if len(line) <= LONGEST_NAME else f"{line[: LONGEST_NAME - 1]}…"


def _plain(text: str) -> str:
    """`text` as matplotlib shows it letter by letter: a $ begins no formula."""
    return text.replace("$", r"\$")


def _label(name: str) -> str:
    """A name for ticks, marks and legends; matplotlib leaves out what begins with an underscore."""
    label = _plain(_short(name))
    return f" {label}" if label.startswith("_") else label


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure
