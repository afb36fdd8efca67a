"""A comparison as a table on the terminal, as CSV, as LaTeX and as a picture."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from everloop.contract import Metric
from everloop.loop.figures import quantity
from everloop.loop.result import MEASURES
from everloop.scenarios.compare import Comparison, Comparisons, Group
from everloop.scenarios.statistics import Estimate, estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = ("average_score", "forgetting", "average_incremental_score")
EXPLAINED = (
    "mean ± half of the 95 % confidence interval over n seeds (Student's t); "
    "difference: of the average to {}, paired by seed (the number of pairs in brackets where it is not n)"
)


def text(value: Estimate | None, metric: Metric, plus_minus: str = "±") -> str:
    """`mean ± half`; "-" where there is nothing."""
    if value is None or value.mean is None:
        return "-"
    mean = metric.text(value.mean)
    return mean if value.half is None else f"{mean} {plus_minus} {metric.text(value.half)}"


def difference_text(value: Estimate | None, metric: Metric, n: int, plus_minus: str = "±") -> str:
    """The difference with its sign, and the number of pairs if it is not `n`."""
    if value is None or value.mean is None:
        return "-"
    sign = "+" if value.mean > 0 else ""
    pairs = "" if value.n == n else f" ({value.n})"
    return f"{sign}{text(value, metric, plus_minus)}{pairs}"


def _cells(table: Comparison, group: Group, plus_minus: str = "±") -> list[str]:
    estimates = [table.estimate(group, measure) for measure in COLUMNS]
    own = [text(value, table.metric, plus_minus) for value in estimates]
    n = len(group.results)
    return [*own, str(n), difference_text(table.difference(group), table.metric, n, plus_minus)]


def _headings(metric: Metric) -> list[str]:
    unit = f" ({metric.unit})" if metric.unit else ""
    return [f"average {metric.name}{unit}", f"forgetting{' (points)' if unit else ''}", f"average incremental{unit}", "n", "difference"]


def print_comparisons(found: Comparisons, console: Console) -> None:
    """The tables; what is left out goes to the notes, which the caller shows."""
    for table in found.tables:
        shown = Table(title=escape(table.scenario), title_justify="left", box=None, padding=(0, 0, 0, 2), pad_edge=False)
        shown.add_column("strategies", overflow="fold")
        for heading in _headings(table.metric):
            shown.add_column(heading, justify="right", no_wrap=False)
        for group in table.groups:
            shown.add_row(escape(group.label), *(cell.replace(" ± ", " ±\u00a0") for cell in _cells(table, group)))
        console.print(shown, highlight=False)
        console.print(escape(EXPLAINED.format(table.baseline.label)), highlight=False, style="dim")


def to_csv(found: Comparisons) -> str:
    """One line for each row and measure, with all numbers whole."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    names = "scenario label metric unit measure n mean low high baseline n_pairs difference difference_low difference_high seeds"
    writer.writerow(names.split())
    for table in found.tables:
        for group in table.groups:
            for measure in MEASURES:
                own, gap = table.estimate(group, measure), table.difference(group, measure) or Estimate(0, None, None)
                numbers = [own.n, own.mean, own.low, own.high, table.baseline.label, gap.n, gap.mean, gap.low, gap.high]
                seeds = " ".join(map(str, sorted(group.results)))
                row = [table.scenario, group.label, table.metric.name, table.metric.unit, measure, *numbers, seeds]
                writer.writerow(["" if value is None else value for value in row])
    return buffer.getvalue()


def to_latex(found: Comparisons, command: str) -> str:
    """A tabular for each scenario, for the package booktabs."""
    blocks = [f"% {command}", "% \\usepackage{booktabs}"]
    for table in found.tables:
        headings = " & ".join(map(_latex, ["strategies", *_headings(table.metric)]))
        rows = [" & ".join([_latex(group.label), *map(_latex_cell, _cells(table, group))]) + r" \\" for group in table.groups]
        blocks += [
            f"% {table.scenario}: {EXPLAINED.format(table.baseline.label)}",
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
    return "".join(special.get(letter, f"\\{letter}" if letter in "&%$#_{}" else letter) for letter in name)


def _latex_cell(cell: str) -> str:
    return cell if cell == "-" else f"${cell.replace('±', chr(92) + 'pm')}$"


def draw(found: Comparisons) -> Figure:
    """A picture: of each scenario the averages with their intervals, and how they come about over the steps of training."""
    figure = _figure(11.0, sum(max(3.2, 1.2 + 0.42 * len(table.groups)) for table in found.tables))
    places = figure.subplots(len(found.tables), 2, squeeze=False)
    for (left, right), table in zip(places, found.tables, strict=True):
        shades = [f"C{i % 10}" for i in range(len(table.groups))]
        _draw_averages(left, table, shades)
        _draw_curves(right, table, shades)
    return figure


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=100)
    FigureCanvasAgg(figure)
    return figure


def _draw_averages(axes: Axes, table: Comparison, shades: Sequence[Any]) -> None:
    for i, (group, color) in enumerate(zip(table.groups, shades, strict=True)):
        values, mean = list(group.values("average_score").values()), table.estimate(group, "average_score")
        axes.plot(values, [i] * len(values), "o", color=color, alpha=0.35, markersize=4)
        if mean.mean is not None:
            axes.errorbar(mean.mean, i, xerr=mean.half or 0.0, fmt="s", color=color, capsize=4)
    axes.set_yticks(range(len(table.groups)), [group.label.replace("$", r"\$") for group in table.groups], fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel=f"average {quantity(table.metric)} at the end", title=table.scenario)
    axes.grid(axis="x", linewidth=0.4)
    if table.metric.unit == "%":  # an interval may reach beyond what there can be
        axes.set_xlim(-3, 103)


def _draw_curves(axes: Axes, table: Comparison, shades: Sequence[Any]) -> None:
    for group, color in zip(table.groups, shades, strict=True):
        steps, means, halves = curve(group)
        if steps:
            low, high = np.subtract(means, halves), np.add(means, halves)
            axes.plot(steps, means, color=color, label=group.label.replace("$", r"\$"), linewidth=1.3)
            axes.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
    for begin in _phase_ends(table):
        axes.axvline(begin, color="0.7", linewidth=0.7, linestyle=":", zorder=0)
    axes.set(xlabel="world steps of training", ylabel=quantity(table.metric), title="average over the tasks seen so far")
    if table.metric.unit == "%":
        axes.set_ylim(-3, 103)
    if axes.lines:
        axes.legend(fontsize=7)


def curve(group: Group) -> tuple[list[int], list[float], list[float]]:
    """(steps, means, half intervals) of the average over the tasks seen so far, at the evaluations that all seeds have."""
    curves = []
    for result in group.results.values():
        points = {}
        for now in result.evaluations:
            seen = result.seen(now)
            if seen and all(math.isfinite(now.scores[j]) for j in seen):
                points[now.step] = math.fsum(now.scores[j] for j in seen) / len(seen)
        curves.append(points)
    steps = sorted(set.intersection(*(set(points) for points in curves)))
    estimates = [estimate([points[step] for points in curves]) for step in steps]
    return steps, [e.mean or 0.0 for e in estimates], [e.half or 0.0 for e in estimates]


def _phase_ends(table: Comparison) -> list[int]:
    """Where tasks change, if all runs of several phases agree on it."""
    results = [result for group in table.groups for result in group.results.values()]
    ends = {tuple(row.step for row in result.rows[:-1]) for result in results if len(result.rows) > 1}
    return list(ends.pop()) if len(ends) == 1 else []


def write(path: Path, make: Callable[[], str | bytes]) -> None:
    """Write a file whole or not at all. Raises OSError or ValueError, in one line."""
    if not path.parent.is_dir():
        raise ValueError(f"{path} can't be written: {path.parent} is no folder")
    content = make()
    temporary = path.with_name(f"{path.name}.new")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def check_picture(path: Path) -> None:
    """Raise ValueError unless the file's ending names a format of pictures."""
    if path.suffix.lower() not in (".pdf", ".png", ".svg"):
        raise ValueError(f"figure is {path}; its name must end in .pdf, .png or .svg")


def picture(found: Comparisons, path: Path) -> bytes:
    """The picture in the format of the file's ending."""
    check_picture(path)
    buffer = io.BytesIO()
    draw(found).savefig(buffer, format=path.suffix[1:].lower(), dpi=150)
    return buffer.getvalue()
