"""A result on the terminal: the score matrix and its summary."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

from rich.columns import Columns
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from everloop.loop import Result

GAP = 4  # columns between two matrices
UNSCALED = (
    "The numbers are returns, because the world has no reference. For scores from 0 (random) to 1 "
    "(best), make its method reference(task) return (random, best)."
)
SEEN = "Only tasks seen so far are evaluated; --eval-tasks all evaluates the others too."


def print_scores(results: Mapping[str, Result], console: Console) -> None:
    """Print score matrices, side by side if the terminal is wide enough.

    A row holds the scores after a phase, a column those of a task.

    Args:
        results: Title -> result.
        console: Console to print to.
    """
    tables = [score_table(title, result, console.width) for title, result in results.items()]
    if len(tables) == 1:  # its title and caption may be wider than the matrix
        title, caption = tables[0].title, tables[0].caption
        tables[0].title = tables[0].caption = None
        console.print(title, tables[0], caption, sep="\n", highlight=False)
    else:
        console.print(Columns(tables, padding=(1, GAP)))
    if any(result.metric.name == "return" for result in results.values()):
        console.print(UNSCALED, highlight=False, soft_wrap=not console.is_terminal)
    if any(math.isnan(score) for result in results.values() for score in result.before):
        console.print(SEEN, highlight=False)


def summary(result: Result) -> str:
    """Return the average and the forgetting in one line; for percentages also the incremental one.

    A result of one phase has no forgetting.
    """
    name, unit = result.metric.name, f" {result.metric.unit}" if result.metric.unit else ""
    points = " points" if unit == " %" else ""
    said = [f"average {name} {result.metric.text(result.average_score, 'unknown')}{unit}"]
    if len(result.phases) == 1:
        return f"{said[0]}, no forgetting with one phase"
    lost = "drop of return" if name == "return" else "forgetting"
    said.append(f"{lost} {result.metric.text(result.forgetting, 'unknown')}{points}")
    if unit:
        said.append(
            "average incremental "
            f"{result.metric.text(result.average_incremental_score, 'unknown')}{unit}"
        )
    return ", ".join(said)


def amount(result: Result) -> str:
    """Return in one line how much training there was, and the online measure if there is one."""
    said = [
        f"{result.steps:,} steps",
        f"{result.updates:,} updates",
        f"{result.presentations:,} presentations",
    ]
    if result.online_accuracy is not None:
        said.append(f"online accuracy {result.online_accuracy:.1f} %")
    return ", ".join(said)


def phase_names(result: Result) -> list[str]:
    """Return the name of each finished phase; tasks that return are numbered."""
    names = [
        result.tasks[phase[0]] if len(phase) == 1 else "all tasks" for phase in result.finished
    ]
    count = Counter(names)
    return [
        name if count[name] == 1 else f"{name} #{names[: i + 1].count(name)}"
        for i, name in enumerate(names)
    ]


def score_table(title: str, result: Result, width: int) -> Table:
    """Return the score matrix with its summary, or one row per task if it exceeds `width`."""
    text = result.metric.text
    rows = {"before": result.before, **dict(zip(phase_names(result), result.scores, strict=True))}
    sizes = [
        max(len(task), *(len(text(row[j])) for row in rows.values()))
        for j, task in enumerate(result.tasks)
    ]
    wanted = max(map(len, [*rows, "after"])) + sum(size + 1 for size in sizes)
    caption = f"{summary(result)}\n{amount(result)}"
    if wanted > width:
        return _by_task(title, result, caption)
    # two matrices of five tasks fit side by side into 80 columns
    table = Table(
        title=escape(title),
        caption=escape(caption),
        box=None,
        padding=(0, 0, 0, 1),
        pad_edge=False,
        min_width=min(wanted, width),
    )
    table.add_column("after", no_wrap=True)
    for task in result.tasks:
        table.add_column(escape(task), justify="right", no_wrap=True)
    for name, row in rows.items():
        table.add_row(escape(name), *(text(score) for score in row))
    return table


def _by_task(title: str, result: Result, caption: str) -> Table:
    """Return a table of each task's score before training, after its own phase, and at the end."""
    note = f"{caption}\n(the complete matrix is in result.json)"
    table = Table(
        title=escape(title), caption=escape(note), box=None, padding=(0, 0, 0, 2), pad_edge=False
    )
    table.add_column("task", overflow="ellipsis", no_wrap=True)
    for heading in ("before", "after its own training", "at the end"):
        table.add_column(heading, justify="right")
    for j, task in enumerate(result.tasks):
        own = [row for row, phase in zip(result.scores, result.finished, strict=True) if j in phase]
        numbers = [
            result.before[j],
            own[-1][j] if own else None,
            result.scores[-1][j] if result.scores else None,
        ]
        table.add_row(escape(task), *(result.metric.text(number) for number in numbers))
    return table
