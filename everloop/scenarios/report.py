"""Runs on the terminal: progress while they go, score matrices afterwards."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.columns import Columns
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from everloop.loop import Listener, Result

REDRAW = 0.1  # seconds: a bar moved at every step would cost a small network a tenth of its time


class ProgressBar(Listener):
    """A bar over a run's world steps, with the task at hand and the latest scores. Use it in a `with`."""

    def __init__(self, title: str, console: Console) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self.title, self.progress = title, Progress(*columns, TextColumn("{task.fields[scores]}"), console=console)

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.progress.stop()

    def on_begin(self, result: Result, total_steps: int) -> None:
        self.bar = self.progress.add_task(self.title, total=total_steps, scores="")
        self.waiting, self.drawn = 0, time.monotonic()

    def on_phase(self, result: Result, phase: int) -> None:
        tasks = [result.tasks[j] for j in result.phases[phase]]
        self.progress.update(self.bar, description=f"{self.title}: {tasks[0] if len(tasks) == 1 else 'all tasks'}")

    def on_steps(self, steps: int) -> None:
        self.waiting += steps
        if time.monotonic() - self.drawn > REDRAW:
            self.draw()

    def draw(self) -> None:
        """Show the steps that have come in since the last time."""
        self.progress.advance(self.bar, self.waiting)
        self.waiting, self.drawn = 0, time.monotonic()

    def on_evaluation(self, result: Result, divergence: dict[str, float]) -> None:
        self.draw()
        self.progress.update(self.bar, scores=" ".join(_number(score) for score in result.evaluations[-1].scores))

    def on_end(self, result: Result) -> None:
        self.progress.update(self.bar, description=self.title, completed=result.steps, total=result.steps)


def score_table(title: str, result: Result) -> Table:
    """The score matrix, with average score and forgetting below it; two of five tasks fit into 80 columns."""
    caption = f"average score {_number(result.average_score)}, forgetting {_number(result.forgetting)}"
    width = max(len(title), len(caption))
    table = Table(title=title, caption=caption, box=None, padding=(0, 0, 0, 1), pad_edge=False, min_width=width)
    table.add_column("after", no_wrap=True)
    for task in result.tasks:
        table.add_column(task, justify="right")
    phases = [result.tasks[phase[0]] if len(phase) == 1 else "all" for phase in result.phases]
    for name, row in zip(["nothing", *phases], [result.before, *result.scores], strict=True):
        table.add_row(name, *(_number(score) for score in row))
    return table


def print_scores(results: Mapping[str, Result], console: Console) -> None:
    """Score matrices side by side, as far as the terminal is wide: row = after which task, column = score on which."""
    console.print(Columns([score_table(title, result) for title, result in results.items()], padding=(1, 4)))


def _number(value: float | None) -> str:
    if value is None:
        return "unknown"
    return f"{value:.2f}" if math.isfinite(value) else "-"
