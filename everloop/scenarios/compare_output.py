"""Output of a comparison: tables on the terminal, CSV, LaTeX and a figure."""

from __future__ import annotations

import csv
import io
import math
import os
import textwrap
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from everloop.contract import Metric
from everloop.loop import Evaluation, Result
from everloop.loop.results.figures import STYLES, quantity
from everloop.loop.results.result import MEASURES
from everloop.scenarios.compare import COLUMNS, Comparison, Comparisons, Group
from everloop.scenarios.statistics import Estimate, estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LAYOUTS = [
    (1000, " ", " "),
    *((room, "\n", gap) for gap in (" ", "\n") for room in (1000, 40, 30, 20)),
]
"""Layouts of a table, from wide to narrow: (width of a label in columns, separator between the
words of a heading, separator before a ±).
"""
SHADES = [
    "#3f90da",
    "#ffa90e",
    "#bd1f01",
    "#94a4a2",
    "#832db6",
    "#a96b59",
    "#e76300",
    "#b9ac70",
    "#717581",
    "#92dadd",
]
"""Ten colours that colour-blind readers can distinguish (Petroff 2021, arXiv:2107.02270)."""


def text(value: Estimate | None, metric: Metric, n: int) -> str:
    """Return "mean ± half", followed by the number of seeds if it is not `n`; "-" if unknown."""
    if value is None or value.mean is None:
        return "-"
    half = "" if value.half is None else f" ± {metric.text(value.half)}"
    return f"{metric.text(value.mean)}{half}{'' if value.n == n else f' ({value.n})'}"


def difference_text(value: Estimate | None, metric: Metric, n: int) -> str:
    """Return the difference as `text` does, with its sign."""
    sign = "+" if value is not None and value.mean is not None and value.mean > 0 else ""
    return sign + text(value, metric, n)


def _cells(table: Comparison, group: Group) -> list[str]:
    n = len(group.results)
    own = [text(table.estimate(group, measure), table.metric, n) for measure in COLUMNS]
    return [*own, str(n), difference_text(table.difference(group), table.metric, n)]


def _headings(metric: Metric) -> list[str]:
    unit = f" ({metric.unit})" if metric.unit else ""
    lost = (
        "drop of return" if metric.name == "return" else f"forgetting{' (points)' if unit else ''}"
    )
    return [f"average {metric.name}{unit}", lost, f"average incremental{unit}", "n", "difference"]


def explained(table: Comparison) -> list[str]:
    """Return the facts that a reader of the table needs, one line each."""
    parts = ["mean ± half of the 95 % confidence interval over n seeds"]
    if len(table.groups) > 1:
        parts.append(f"difference from {table.baseline.label!r}, paired by seed")
    if any(cell.endswith(")") for group in table.groups for cell in _cells(table, group)):
        parts.append("in brackets: the number of seeds where it is not n")
    return ["; ".join(parts), *table.remarks]


def print_comparisons(found: Comparisons, console: Console) -> None:
    """Print the tables, each in the widest layout that fits. The caller prints the notes."""
    endless = console.options.update(width=100_000)
    for i, table in enumerate(found.tables):
        layouts = [_table(table, *layout) for layout in LAYOUTS]
        fitting = [
            shown
            for shown in layouts
            if console.measure(shown, options=endless).maximum <= console.width
        ]
        console.print(
            *([""] if i else []),
            escape(table.title),
            next(iter([*fitting, layouts[-1]])),
            sep="\n",
            highlight=False,
        )
        for line in explained(table):
            console.print(escape(line), highlight=False, style="dim")


def _table(table: Comparison, room: int, heading_gap: str, cell_gap: str) -> Table:
    shown = Table(box=None, padding=(0, 0, 0, 2), pad_edge=False)
    shown.add_column("strategies", no_wrap=True)
    for heading in _headings(table.metric):
        shown.add_column(heading.replace(" ", heading_gap), justify="right", no_wrap=True)
    for group in table.groups:
        label = textwrap.fill(group.label, room, break_long_words=False, break_on_hyphens=False)
        shown.add_row(
            escape(label), *(cell.replace(" ±", f"{cell_gap}±") for cell in _cells(table, group))
        )
    return shown


def to_csv(found: Comparisons) -> str:
    """Return CSV text with one line for each row and measure, in full precision."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    names = (
        "scenario scenario_type label metric unit measure n mean low high baseline n_pairs "
        "difference difference_low difference_high seeds"
    )
    writer.writerow(names.split())
    for table in found.tables:
        for group in table.groups:
            for measure in MEASURES:
                own, gap = (
                    table.estimate(group, measure),
                    table.difference(group, measure) or Estimate(0, None, None),
                )
                numbers = [
                    own.n,
                    own.mean,
                    own.low,
                    own.high,
                    table.baseline.label,
                    gap.n,
                    gap.mean,
                    gap.low,
                    gap.high,
                ]
                seeds = " ".join(map(str, sorted(group.results)))
                row = [
                    table.scenario,
                    table.scenario_type,
                    group.label,
                    table.metric.name,
                    table.metric.unit,
                    measure,
                    *numbers,
                    seeds,
                ]
                writer.writerow(["" if value is None else value for value in row])
    return buffer.getvalue()


def to_dict(found: Comparisons) -> dict[str, Any]:
    """Return all measures of all rows of all tables as JSON can hold them; None if unknown."""
    return {"tables": [_table_dict(table) for table in found.tables], "notes": found.notes}


def _table_dict(table: Comparison) -> dict[str, Any]:
    def numbers(value: Estimate | None) -> dict[str, Any] | None:
        return (
            None
            if value is None
            else {"n": value.n, "mean": value.mean, "low": value.low, "high": value.high}
        )

    def row(group: Group) -> dict[str, Any]:
        measures = {
            measure: {
                **(numbers(table.estimate(group, measure)) or {}),
                "values": group.values(measure),
                "difference": numbers(table.difference(group, measure)),
            }
            for measure in MEASURES
        }
        return {
            "label": group.label,
            "settings": group.settings,
            "seeds": sorted(group.results),
            "measures": measures,
        }

    return {
        "scenario": table.scenario,
        "scenario_type": table.scenario_type,
        "metric": {"name": table.metric.name, "unit": table.metric.unit},
        "baseline": table.baseline.label,
        "remarks": table.remarks,
        "rows": [row(group) for group in table.groups],
    }


def to_latex(found: Comparisons, command: str) -> str:
    """Return LaTeX text with one tabular for each comparison. It needs the package booktabs.

    Args:
        found: The comparisons.
        command: The command line that made them; it becomes a comment.
    """
    blocks = [f"% {command}", "% \\usepackage{booktabs}"]
    for table in found.tables:
        headings = " & ".join(map(_latex, ["strategies", *_headings(table.metric)]))
        rows = [
            " & ".join([_latex(group.label), *map(_latex_cell, _cells(table, group))]) + r" \\"
            for group in table.groups
        ]
        blocks += [
            f"% {table.title}",
            *(f"% {line}" for line in explained(table)),
            r"\begin{tabular}{lrrrrr}",
            r"\toprule",
            headings + r" \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
        ]
    return "\n".join(blocks) + "\n"


def _latex(name: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
    return "".join(
        special.get(letter, f"\\{letter}" if letter in "&%$#_{}" else letter) for letter in name
    )


def _latex_cell(cell: str) -> str:
    return cell if cell == "-" else f"${cell.replace('±', chr(92) + 'pm')}$"


def draw(found: Comparisons) -> Figure:
    """Draw, for each table, the averages with their intervals and the learning curves."""
    figure = _figure(11.0, sum(max(3.2, 1.2 + 0.42 * len(table.groups)) for table in found.tables))
    places = figure.subplots(len(found.tables), 2, squeeze=False)
    for (left, right), table in zip(places, found.tables, strict=True):
        shades = [SHADES[i % len(SHADES)] for i in range(len(table.groups))]
        _draw_averages(left, table, shades)
        _draw_curves(right, table, shades)
    return figure


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=100)
    FigureCanvasAgg(figure)
    return figure


def _draw_averages(axes: Axes, table: Comparison, shades: Sequence[str]) -> None:
    for i, (group, color) in enumerate(zip(table.groups, shades, strict=False)):
        values, mean = (
            list(group.values("average_score").values()),
            table.estimate(group, "average_score"),
        )
        axes.plot(values, [i + 0.2] * len(values), "o", color=color, alpha=0.35, markersize=4)
        if mean.mean is not None:
            axes.errorbar(mean.mean, i, xerr=mean.half, fmt="s", color=color, capsize=4)
    axes.set_yticks(
        range(len(table.groups)),
        [group.label.replace("$", r"\$") for group in table.groups],
        fontsize=8,
    )
    axes.invert_yaxis()
    axes.set(xlabel=f"average {quantity(table.metric)} at the end", title=table.title)
    axes.grid(axis="x", linewidth=0.4)
    if table.metric.unit == "%":  # an interval may extend beyond 0 to 100 %
        axes.set_xlim(-3, 103)


def _draw_curves(axes: Axes, table: Comparison, shades: Sequence[str]) -> None:
    for i, (group, color) in enumerate(zip(table.groups, shades, strict=True)):
        style = STYLES[i // len(SHADES) % len(STYLES)]
        steps, means, halves = curve(group)
        if steps:
            low, high = np.subtract(means, halves), np.add(means, halves)
            axes.plot(
                steps,
                means,
                color=color,
                label=group.label.replace("$", r"\$"),
                linestyle=style,
                linewidth=1.3,
            )
            axes.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
    for begin in _phase_ends(table):
        axes.axvline(begin, color="0.7", linewidth=0.7, linestyle=":", zorder=0)
    axes.set(
        xlabel="world steps of training",
        ylabel=quantity(table.metric),
        title="average over the tasks seen so far",
    )
    if table.metric.unit == "%":
        axes.set_ylim(-3, 103)
    if axes.lines:
        axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0)


def curve(group: Group) -> tuple[list[float], list[float], list[float]]:
    """Return the average over the tasks seen so far during training, as a mean over seeds.

    The points are the evaluations that all seeds have. If the phases of the seeds end at different
    steps, the points are the ends of the phases, each at its mean step.

    Returns:
        (world steps, means, half widths of the 95 % intervals), three lists of the same length.
    """
    results = list(group.results.values())
    if len({tuple(row.step for row in result.rows) for result in results}) == 1:
        curves = [{now.step: value for now, value in _averages(result)} for result in results]
        steps: dict[int, float] = {step: step for step in curves[0]}
    else:
        curves = [
            {
                now.phase: value
                for now, value in _averages(result)
                if now.ends_phase and now.phase is not None
            }
            for result in results
        ]
        ends = zip(*([row.step for row in result.rows] for result in results), strict=False)
        steps = {phase: math.fsum(of_phase) / len(of_phase) for phase, of_phase in enumerate(ends)}
    shared = sorted(set.intersection(set(steps), *map(set, curves)))
    estimates = [estimate([points[key] for points in curves]) for key in shared]
    return (
        [steps[key] for key in shared],
        [e.mean or 0.0 for e in estimates],
        [e.half or 0.0 for e in estimates],
    )


def _averages(result: Result) -> list[tuple[Evaluation, float]]:
    """Return the evaluations with known scores of all tasks seen so far, and their averages."""
    found = [(now, [now.scores[j] for j in result.seen(now)]) for now in result.evaluations]
    return [
        (now, math.fsum(scores) / len(scores))
        for now, scores in found
        if scores and all(map(math.isfinite, scores))
    ]


def _phase_ends(table: Comparison) -> list[int]:
    """Return the steps at which tasks change, or nothing if runs disagree on them."""
    results = [result for group in table.groups for result in group.results.values()]
    ends = {
        tuple(row.step for row in result.rows[:-1]) for result in results if len(result.rows) > 1
    }
    return list(ends.pop()) if len(ends) == 1 else []


def write(path: Path, make: Callable[[], str | bytes]) -> None:
    """Write a file completely or not at all.

    Args:
        path: The file; its folder must exist.
        make: Function that returns the content.

    Raises:
        ValueError: If the folder does not exist.
        OSError: If the file can't be written.
    """
    if not path.parent.is_dir():
        raise ValueError(f"{path} can't be written: the folder {path.parent} does not exist")
    content = make()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def check_picture(path: Path) -> None:
    """Check that a figure can be written to `path`.

    Raises:
        ValueError: If the suffix is not .pdf, .png or .svg.
        ImportError: If matplotlib is not installed.
    """
    if path.suffix.lower() not in (".pdf", ".png", ".svg"):
        raise ValueError(f"figure is {path}; its name must end in .pdf, .png or .svg")
    try:
        import_module("matplotlib")
    except ModuleNotFoundError:
        raise ImportError("a figure needs the package matplotlib: pip install matplotlib") from None


def picture(found: Comparisons, path: Path) -> bytes:
    """Return the figure in the format that the suffix of `path` names.

    Raises:
        ValueError: If the suffix is not .pdf, .png or .svg.
        ImportError: If matplotlib is not installed.
    """
    check_picture(path)
    buffer = io.BytesIO()
    draw(found).savefig(buffer, format=path.suffix[1:].lower(), dpi=150)
    return buffer.getvalue()
