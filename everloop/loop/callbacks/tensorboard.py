"""Logging a run to TensorBoard."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everloop.loop.callbacks.about import about, flattened, identity
from everloop.loop.callbacks.curves import average_forgetting, charts, curve, titles
from everloop.loop.callbacks.events import EventFile
from everloop.loop.results.figures import heading, learning_curves_figure, score_matrix_figure
from everloop.loop.results.result import MEASURES, Result
from everloop.loop.run import Callback, Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DRAWING = 0.05  # share of the time that drawing figures may take before the run ends
FIRST_DRAWING = 1.0  # seconds for the first figure, including the import of matplotlib


def _matrix(result: Result) -> Figure:
    """Draw the score matrix of one result."""
    return score_matrix_figure({heading(result): result})


FIGURES: Mapping[str, Callable[[Result], Figure]] = {
    "learning curves": learning_curves_figure,
    "score matrix": _matrix,
}


class TensorBoardLogger(Callback):
    """Writes a run as TensorBoard events. docs/tensorboard.md describes each page.

    - Scalars: score/<task> and forgetting/<task>; average/<scenario>/..., their means over the
      tasks seen so far; measures/<scenario>/... after each phase; task/index; and
      what learners and strategies report, such as train/loss.
    - Custom Scalars: a category for the scenario, with one chart per measure.
    - Images: the learning curves and the score matrix, drawn when the run ends. Before that, both
      are redrawn at a phase's end if drawing then takes at most 5 % of the time so far, and the
      curves at any evaluation if it takes at most half of that. The time of a drawing is estimated
      by the last one. A run of less than 20 s is drawn only at its end.
    - HParams: the settings and the measures.
    - Text: a card that explains the run.

    A resumed run may write to the folder of the interrupted one: TensorBoard then drops the later
    points of the interrupted run.

    Args:
        folder: Folder for the events. It is created if it does not exist.
        settings: Settings of the run. Nested mappings become "outer.inner".
        command: The command that started the run.

    Raises:
        OSError: Here or at a later event, if the events can't be written. The message is one line.
    """

    def __init__(
        self,
        folder: Path | str,
        settings: Mapping[str, Any] = {},
        command: str = "",
    ) -> None:
        self.events = EventFile(folder)
        self.settings, self.command = settings, command
        self._result: Result | None = None

    def on_run_begin(self, run: Run) -> None:
        self._begin(run.result)
        self._scores(run.result)
        self.events.flush()

    def _restored(self, run: Run) -> None:
        self._begin(run.result)
        self.events.resume(run.steps + 1)
        self.events.flush()

    def _begin(self, result: Result) -> None:
        """Start the drawing budget, and add what describes the run as a whole."""
        self._result, self._began = result, time.perf_counter()
        self._spent, self._next = 0.0, FIRST_DRAWING
        self._drawn: dict[str, int] = {}
        who, names = identity(result), titles(result.metric)
        settings = {**who, **flattened(self.settings)}
        metrics = {curve("measures", result, name): names[name] for name in MEASURES}
        self.events.charts(result.scenario or "run", charts(result))
        self.events.settings(settings, metrics, first=who)
        self.events.text("about", about(result, settings, self.command))

    def on_phase_begin(self, run: Run) -> None:
        self._task(run.result, run.phase)

    def on_evaluation(self, run: Run) -> None:
        result = run.result
        now = result.evaluations[-1]
        self._scores(result)
        if now.ends_phase:
            self._task(result, len(result.rows) - 1)
            measures = result.measures().items()
            self._write({curve("measures", result, name): v for name, v in measures}, now.step)
        self._draw_in_budget(result)
        self.events.flush()

    def on_log(self, run: Run, scalars: dict[str, float]) -> None:
        self._write(scalars, run.steps)

    def on_save(self, run: Run) -> None:
        if not self.events.closed:
            self.events.flush()

    def on_run_end(self, run: Run) -> None:
        self._close(success=True)

    def close(self) -> None:
        """Draw what is missing and close the file. A run that has not ended is marked as failed."""
        self._close(success=False)

    def _close(self, success: bool) -> None:
        """Draw what is missing, mark the run as finished or failed, and close the file."""
        if self.events.closed:
            return
        if self._result is not None:
            for tag in FIGURES:
                if self._drawn.get(tag) != len(self._result.evaluations):
                    self._draw(tag, self._result)
            self.events.end(success)
        self.events.close()

    def _write(self, values: Mapping[str, float | None], step: int) -> None:
        """Add a point for each value that is known."""
        known = {tag: v for tag, v in values.items() if v is not None and math.isfinite(v)}
        if known:
            self.events.scalars(known, step)

    def _scores(self, result: Result) -> None:
        """Add the scores and the forgetting at the latest evaluation, and their averages."""
        now, forgetting = result.evaluations[-1], result.forgetting_now()
        scores = {f"score/{task}": v for task, v in zip(result.tasks, now.scores, strict=True)}
        lost = {f"forgetting/{task}": v for task, v in zip(result.tasks, forgetting, strict=True)}
        averages = {
            curve("average", result, "score"): result.average_now(),
            curve("average", result, "forgetting"): average_forgetting(result),
        }
        self._write({**scores, **lost, **averages}, now.step)

    def _task(self, result: Result, phase: int) -> None:
        """Add the task's index, if the phase has one task; points at both ends of it make steps."""
        if len(result.phases[phase]) == 1:
            self._write({"task/index": float(result.phases[phase][0])}, result.steps)

    def _draw_in_budget(self, result: Result) -> None:
        """Draw what is due, if the budget allows it."""
        ends_phase = result.evaluations[-1].ends_phase
        share = DRAWING if ends_phase else DRAWING / 2
        for tag in list(FIGURES)[: None if ends_phase else 1]:
            if self._spent + self._next <= share * (time.perf_counter() - self._began):
                self._draw(tag, result)

    def _draw(self, tag: str, result: Result) -> None:
        """Draw one figure, and note the time that it took."""
        began = time.perf_counter()
        self.events.figure(tag, FIGURES[tag](result), result.evaluations[-1].step)
        self._drawn[tag] = len(result.evaluations)
        self._next = time.perf_counter() - began
        self._spent += self._next
