"""Figures of a result: its score matrix and its learning curves, about 0.1 s each for 5 tasks.

The layout is computed here, in inches, because matplotlib's layout engines take as long as the
drawing itself.
"""

from __future__ import annotations

import math
import textwrap
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from everloop.contract import SCORE, Metric
from everloop.loop.results.result import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_NAMES = 25  # the most task names or numbers that fit side by side
LONGEST_NAME = 40  # characters
STYLES = ("-", "--", ":", "-.")  # line styles; each comes in ten colours
DPI = 80  # makes a figure of few tasks as wide as a card of TensorBoard, which scales coarsely
NAMES, TITLE = 8, 10  # font sizes in points
LINE = 0.2  # height of a line of text in inches
SCALE = 0.8  # width of the labels of a vertical axis in inches


def heading(result: Result) -> str:
    """Return the title of a figure: the scenario and the strategies."""
    strategies = ", ".join(result.strategies)
    return ": ".join(part for part in (result.scenario, strategies) if part)


def quantity(metric: Metric) -> str:
    """Return an axis label: the name of the metric and its unit or range."""
    if metric.unit:
        return f"{metric.name} ({metric.unit})"
    return "score (0 random, 1 best known)" if metric == SCORE else metric.name


def phase_name(result: Result, phase: int) -> str:
    """Return the name of the task that a phase trains, or a name for several tasks."""
    tasks = result.phases[phase]
    if len(tasks) == 1:
        return result.tasks[tasks[0]]
    return "all tasks" if len(set(tasks)) == len(result.tasks) else f"phase {phase + 1}"


def score_matrix_figure(results: Mapping[str, Result]) -> Figure:
    """Draw score matrices side by side.

    Each row is a phase, after which the scores were measured; each column is a task. Colours span 0
    to 100 for percentages, -1 to 1 for scores, and the range of `results` for returns. A matrix of
    more than 25 tasks or rows has no numbers, and not all of its names.

    Args:
        results: Results by title, at least one.
    """
    panels = [_Panel.of(title, result) for title, result in results.items()]
    height = max(panel.bottom + panel.height + panel.top for panel in panels)
    figure = _figure(sum(panel.left + panel.width + panel.right for panel in panels), height)
    x = 0.0
    for panel in panels:
        top = height - panel.top
        axes = _axes(figure, x + panel.left, top - panel.height, panel.width, panel.height)
        axes.set_title(panel.title, fontsize=TITLE)
        span = _color_range(panel.result.metric, results.values())
        image = _draw_matrix(axes, panel.result, span)
        x += panel.left + panel.width + panel.right
        bar = _axes(figure, x - panel.right + 0.1, top - panel.height, 0.12, panel.height)
        metric = panel.result.metric
        bar_label = (
            quantity(metric) if metric.unit else metric.name
        )  # all that fits beside a few rows
        figure.colorbar(image, cax=bar).set_label(bar_label, fontsize=NAMES)
        bar.tick_params(labelsize=NAMES)
    return figure


@dataclass(frozen=True)
class _Panel:
    """One matrix with its size and its margins, in inches."""

    result: Result
    title: str
    width: float
    height: float
    left: float
    bottom: float
    top: float
    right: float = 0.25 + SCALE

    @classmethod
    def of(cls, title: str, result: Result) -> _Panel:
        """Return a panel large enough for the names of the result."""
        columns, rows = (min(n, MOST_NAMES) for n in (len(result.tasks), 1 + len(result.rows)))
        slant = 0.71 * max(_width(_label(name)) for name in result.tasks)
        width = max(2.4, 0.45 * columns)
        left = max(max(map(_width, _row_names(result))) + 0.2, slant - 0.5 * width / columns)
        title = _wrapped(title, width + 0.8)
        top = 0.15 + LINE * (1 + title.count("\n"))
        return cls(result, title, width, max(1.4, 0.34 * rows), left, slant + 0.35, top)


def _draw_matrix(axes: Any, result: Result, span: tuple[float, float]) -> Any:
    """Draw the scores with colours over `span`, and return the image."""
    rows, names = [result.before, *result.scores], _row_names(result)
    colors = "RdBu" if result.metric == SCORE else "viridis"
    image = axes.imshow(rows, aspect="auto", vmin=span[0], vmax=span[1], cmap=colors)
    columns, lines = _some(len(result.tasks)), _some(len(rows))
    slanted = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(columns, [_label(result.tasks[j]) for j in columns], fontsize=NAMES, **slanted)
    axes.set_yticks(lines, [names[i] for i in lines], fontsize=NAMES)
    if len(columns) < len(result.tasks) or len(lines) < len(rows):
        return image
    for i, row in enumerate(rows):
        for j, score in enumerate(row):
            ink = "white" if math.isfinite(score) and _dark(image, score) else "black"
            text = result.metric.text(score)
            axes.text(j, i, text, ha="center", va="center", fontsize=NAMES, color=ink)
    return image


def _dark(image: Any, score: float) -> bool:
    """Return True if the colour of `score` needs light text: its luma is below one half."""
    red, green, blue, _ = image.to_rgba(score)
    return bool(0.299 * red + 0.587 * green + 0.114 * blue < 0.5)


def _color_range(metric: Metric, results: Iterable[Result]) -> tuple[float, float]:
    """Return the lowest and the highest value of the colour scale."""
    if metric.unit == "%":
        return 0.0, 100.0
    if metric == SCORE:
        return -1.0, 1.0
    matrices = [[r.before, *r.scores] for r in results if r.metric == metric]
    values = [v for matrix in matrices for row in matrix for v in row if math.isfinite(v)]
    return (min(values), max(values)) if values else (0.0, 1.0)


def _row_names(result: Result) -> list[str]:
    """Return the labels of the rows of the score matrix."""
    phases = range(len(result.rows))
    names = [f"after {_plain(_short(phase_name(result, i)))}" for i in phases]
    return ["before training", *names]


def learning_curves_figure(result: Result) -> Figure:
    """Draw the score of every task over the steps of a run, with a line where each phase begins."""
    names = [_label(name) for name in result.tasks]
    shown, longest = len(_some(len(names))), max(map(_width, names))
    columns = math.ceil(len(names) / MOST_NAMES)
    width, height = max(2.6, 0.25 * shown), max(2.2, 0.18 * math.ceil(len(names) / columns) - 0.3)
    slant = 0.71 * max(_width(_label(phase_name(result, i))) for i in range(len(result.phases)))
    right = max(0.2 + columns * (longest + 0.45), slant)
    title = _wrapped(heading(result), SCALE + width + right)
    top = slant + 0.3 + LINE * (1 + title.count("\n"))
    figure = _figure(SCALE + width + right, 0.5 + height + top)
    axes = _axes(figure, SCALE, 0.5, width, height)
    lines = _draw_curves(axes, result)
    _mark_phases(axes, result)
    figure.text(0.5, 0.98, title, ha="center", va="top", fontsize=TITLE)
    legend = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0), "frameon": False}
    axes.legend(lines, names, fontsize=NAMES, handlelength=1.5, ncols=columns, **legend)
    return figure


def _draw_curves(axes: Any, result: Result) -> list[Any]:
    """Draw one curve a task, and return the lines."""
    steps, lines = [now.step for now in result.evaluations], []
    for j in range(len(result.tasks)):
        scores = [now.scores[j] for now in result.evaluations]
        lines += axes.plot(steps, scores, color=f"C{j % 10}", linestyle=STYLES[j // 10 % 4])
    if result.metric.unit == "%":
        axes.set_ylim(-3, 103)
    axes.set_xlim(0, max(1, steps[-1]))
    axes.set_xlabel("world steps", fontsize=NAMES)
    axes.set_ylabel(quantity(result.metric), fontsize=NAMES)
    axes.locator_params(axis="x", nbins=5)
    axes.tick_params(labelsize=NAMES)
    return lines


def _mark_phases(axes: Any, result: Result) -> None:
    """Draw a line at the beginning of each phase, with its name if there is room."""
    begins = [0, *(row.step for row in result.rows)][: len(result.phases)]
    named = _some(len(begins))
    slanted = {"rotation": 45, "rotation_mode": "anchor", "ha": "left", "va": "bottom"}
    for phase, step in enumerate(begins):
        axes.axvline(step, color="0.6", linewidth=1.0, zorder=0)
        if phase in named:
            name, place = _label(phase_name(result, phase)), axes.get_xaxis_transform()
            axes.text(step, 1.02, name, transform=place, fontsize=NAMES, **slanted)


def _some(number: int) -> range:
    """Return the indices of `number` items, thinned evenly to at most `MOST_NAMES`."""
    return range(0, number, math.ceil(number / MOST_NAMES))


def _short(name: str) -> str:
    """Return `name` on one line of at most `LONGEST_NAME` characters."""
    line = " ".join(name.split())
    return line if len(line) <= LONGEST_NAME else f"{line[: LONGEST_NAME - 1]}…"


def _plain(text: str) -> str:
    """Return `text` with $ escaped, so that matplotlib reads no formula in it."""
    return text.replace("$", r"\$")


def _label(name: str) -> str:
    """Return a label for ticks, marks and legends.

    A legend would omit a label that begins with an underscore.
    """
    label = _plain(_short(name))
    return f" {label}" if label.startswith("_") else label


def _wrapped(title: str, width: float) -> str:
    """Return `title` in lines of at most `width` inches, as far as its words allow."""
    return _plain(textwrap.fill(title, max(12, round(width / 0.09))))


def _width(text: str) -> float:
    """Return the width of a label in inches."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties()))
    font.set_size(NAMES, 72)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the font lacks some scripts
        font.set_text(text)
    return float(font.get_width_height()[0]) / 64 / 72


def _figure(width: float, height: float) -> Figure:
    """Return an empty figure of this size in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI)
    FigureCanvasAgg(figure)
    return figure


def _axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Any:
    """Return new axes at this place in the figure, in inches."""
    all_width, all_height = figure.get_size_inches()
    place = (left / all_width, bottom / all_height, width / all_width, height / all_height)
    return figure.add_axes(place)
