"""Forgetting in TensorBoard, while it happens."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from everloop.loop.closed_loop import Listener
from everloop.loop.result import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Board(Listener):
    """Writes a run as TensorBoard events: score, forgetting and divergence of every task over all steps.

    SCALARS: score/<task>, forgetting/<task>, average/score, average/forgetting and average/anytime after each phase,
        kl/<task>/<module>, weights/<task>/<module>, train/...
    CUSTOM SCALARS: one chart with all tasks' scores, one with all their forgetting.
    IMAGES: the score matrix after each phase.
    """

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder))

    def on_begin(self, result: Result, total_steps: int) -> None:
        charts = {name: ["Multiline", [f"{name}/{task}" for task in result.tasks]] for name in ("forgetting", "score")}
        self.writer.add_custom_scalars({"all tasks": charts})
        for task, score in zip(result.tasks, result.before, strict=True):
            self._scalar(f"score/{task}", score, 0)

    def on_evaluation(self, result: Result, divergence: dict[str, float]) -> None:
        evaluation = result.evaluations[-1]
        forgetting = result.forgetting_now()
        for task, score, lost in zip(result.tasks, evaluation.scores, forgetting, strict=True):
            self._scalar(f"score/{task}", score, evaluation.step)
            if lost is not None:
                self._scalar(f"forgetting/{task}", lost, evaluation.step)
        for name, value in divergence.items():
            self._scalar(name, value, evaluation.step)
        if evaluation.ends_phase:
            self._averages(result, evaluation.step)
            self._matrix(result, evaluation.step)
        self.writer.flush()

    def on_scalars(self, step: int, scalars: dict[str, float]) -> None:
        for name, value in scalars.items():
            self._scalar(name, value, step)

    def on_end(self, result: Result) -> None:
        self.close()

    def close(self) -> None:
        """Write out what is pending."""
        self.writer.close()

    def _scalar(self, name: str, value: float, step: int) -> None:
        if math.isfinite(value):  # a task that was not measured has no point
            self.writer.add_scalar(name, value, step)

    def _averages(self, result: Result, step: int) -> None:
        for name, value in (
            ("score", result.average_score),
            ("forgetting", result.forgetting),
            ("anytime", result.anytime_score),
        ):
            if value is not None:
                self._scalar(f"average/{name}", value, step)

    def _matrix(self, result: Result, step: int) -> None:
        self.writer.add_figure("score matrix", score_matrix_figure({"": result}), step)


def score_matrix_figure(results: dict[str, Result]) -> Figure:
    """The score matrices of `results` (title -> result) side by side: row = after phase, column = task."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tasks = max(len(result.tasks) for result in results.values())
    figure = Figure(figsize=(len(results) * (1.2 + 0.7 * tasks), 1.6 + 0.5 * tasks), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, result) in zip(figure.subplots(1, len(results), squeeze=False)[0], results.items(), strict=True):
        rows = [result.before, *result.scores]
        image = axes.imshow(rows, vmin=-1, vmax=1, cmap="RdBu")
        labels = ["before", *(f"after {i + 1}" for i in range(len(result.scores)))]
        axes.set(xticks=range(len(result.tasks)), yticks=range(len(rows)), yticklabels=labels, title=title)
        axes.set_xticklabels(result.tasks, rotation=30, ha="right")
        for i, row in enumerate(rows):
            for j, score in enumerate(row):
                ink = "white" if abs(score) > 0.6 else "black"
                axes.text(j, i, f"{score:.2f}" if math.isfinite(score) else "", ha="center", va="center", fontsize=8, color=ink)
    figure.colorbar(image, ax=figure.axes, label="score (0 random, 1 best)", shrink=0.8)
    return figure
