"""Forgetting in TensorBoard, while it happens."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from everloop.contract import Metric
from everloop.loop.closed_loop import Listener
from everloop.loop.events import EventFile
from everloop.loop.figures import curves_figure, score_matrix_figure
from everloop.loop.result import MEASURES, Result

OVERHEAD = 0.03  # share of the time that pictures may take between two phase ends
LABELS = {
    "average_score": "average {}",
    "average_incremental_score": "average incremental {}",
    "learning_accuracy": "{} right after learning",
}


class Board(Listener):
    """Writes a run as TensorBoard events.

    SCALARS, over world steps: score/TASK and forgetting/TASK of each task; average/score and average/forgetting over the
        tasks seen so far; measures/... after each phase; task/index, the phase that is trained; divergence/...; train/...
    CUSTOM SCALARS: a chart for the average and for each measure.
    IMAGES: every task's curve with a legend, and the score matrix.
    TEXT: the settings, the command, and what the curves mean.
    HPARAMS: the settings, with the final measures.

    Curves are drawn again at an evaluation if that takes little of the run's time, and always at a phase's end.

    Args:
        folder: Where the events are written; it is made.
        settings: Of the run, by key; mappings inside are shown as dotted keys.
        command: What repeats the run.

    Raises:
        OSError: From any method, where the folder can't be written.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any] | None = None, command: str = "") -> None:
        self.events = EventFile(folder)
        self.settings, self.command = dict(settings or {}), command
        self.drawn, self.took = -math.inf, 0.0
        self.ending: Any = None  # the summary that closes the session of hyperparameters

    def on_begin(self, result: Result, total_steps: int) -> None:
        from torch.utils.tensorboard.summary import custom_scalars, text

        self.title = " ".join(
            filter(None, [result.scenario, "+".join(result.strategies), f"seed {result.seed}" if result.scenario else ""])
        )
        self.events.add(custom_scalars(layout(result)))  # type: ignore[no-untyped-call]
        self.events.add(text("about", about(result, self.title, self.settings, self.command)))  # type: ignore[no-untyped-call]
        self._begin_session()
        for task, score in zip(result.tasks, result.before, strict=True):
            self._scalar(f"score/{task}", score, 0)
        self.events.flush()

    def on_phase(self, result: Result, phase: int) -> None:
        self._scalar("task/index", phase, result.steps)

    def on_evaluation(self, result: Result, divergence: dict[str, float]) -> None:
        now, forgetting = result.evaluations[-1], result.forgetting_now()
        assert now.phase is not None
        for task, score, lost in zip(result.tasks, now.scores, forgetting, strict=True):
            self._scalar(f"score/{task}", score, now.step)
            self._scalar(f"forgetting/{task}", lost, now.step)
        self._scalar("average/score", result.average_now(), now.step)
        self._scalar("average/forgetting", result.average_forgetting_now(), now.step)
        for name, distance in divergence.items():
            self._scalar(f"divergence/{name}", distance, now.step)
        if now.ends_phase:
            self._scalar("task/index", now.phase, now.step)
            for name, value in result.measures().items():
                self._scalar(f"measures/{name}", value, now.step)
        self._draw(result, now.step, now.ends_phase)
        self.events.flush()

    def on_scalars(self, step: int, scalars: dict[str, float]) -> None:
        for name, value in scalars.items():
            self._scalar(name, value, step)

    def on_end(self, result: Result) -> None:
        if self.ending is not None:
            self.events.add(self.ending)
        self.close()

    def close(self) -> None:
        """Write out what is pending."""
        self.events.close()

    def _scalar(self, tag: str, value: float | None, step: int) -> None:
        if value is not None and math.isfinite(value):  # what was not measured has no point
            self.events.scalar(tag, value, step)

    def _draw(self, result: Result, step: int, ends_phase: bool) -> None:
        began = time.monotonic()
        if not ends_phase and (began - self.drawn) * OVERHEAD < self.took:
            return
        self.events.figure("curves of all tasks", curves_figure(result, self.title), step)
        if ends_phase:
            self.events.figure("score matrix", score_matrix_figure({self.title: result}), step)
        self.drawn = time.monotonic()
        self.took = self.drawn - began

    def _begin_session(self) -> None:
        """The settings as hyperparameters of this very run: torch's own `add_hparams` would make another one of it."""
        from torch.utils.tensorboard.summary import hparams

        if not self.settings:
            return
        measures = dict.fromkeys(f"measures/{name}" for name in MEASURES)
        experiment, begin, self.ending = hparams(hyperparameters(self.settings), measures)  # type: ignore[no-untyped-call]
        self.events.add(experiment)
        self.events.add(begin)


def measure_label(name: str, metric: Metric) -> str:
    """What a measure is called, with its unit: "average accuracy (%)"."""
    label = LABELS.get(name, name.replace("_", " ")).format(metric.name)
    if not metric.unit:
        return label
    return f"{label} (points)" if "forgetting" in name or "transfer" in name else f"{label} ({metric.unit})"


def layout(result: Result) -> dict[str, dict[str, list[Any]]]:
    """Charts of the custom scalars: one for the average, one for each measure.

    TensorBoard reads a chart's tags as regular expressions, and draws what begins like one of them; so each is closed.
    """
    charts = {
        f"average {result.metric.name} of the tasks seen so far{f' ({result.metric.unit})' if result.metric.unit else ''}": "average/score",
        f"forgetting of the tasks seen so far{' (points)' if result.metric.unit else ''}": "average/forgetting",
        **{f"after each task: {measure_label(name, result.metric)}": f"measures/{name}" for name in MEASURES},
        "phase that is trained": "task/index",
    }
    return {result.scenario or "run": {title: ["Multiline", [f"^{re.escape(tag)}$"]] for title, tag in charts.items()}}


def flat_settings(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys for mappings inside."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= flat_settings(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def hyperparameters(settings: Mapping[str, Any]) -> dict[str, bool | float | str]:
    """Settings as TensorBoard takes them: with the same keys in all runs of a scenario.

    The settings of strategies, which runs differ in, are one text.
    """
    strategies = settings.get("strategies", [])
    names = [str(name).rpartition(":")[2] for name in strategies]
    own = flat_settings({name: settings[name] for name in names if isinstance(settings.get(name), Mapping)})
    shared = {key: value for key, value in settings.items() if key not in names}
    values: dict[str, bool | float | str] = {}
    for key, value in flat_settings(shared).items():
        values[key] = (
            value if isinstance(value, bool | int | float) else "+".join(map(str, value)) if isinstance(value, list) else str(value)
        )
    return values | {"strategy settings": " ".join(f"{key}={value}" for key, value in own.items())}


def about(result: Result, title: str, settings: Mapping[str, Any], command: str) -> str:
    """The text card, in Markdown: what is run, and how to read the curves."""
    unit = f" in {result.metric.unit}" if result.metric.unit else ""
    kind = {"score": "a score, 0 for a random agent and 1 for the best known", "return": "the mean return of an episode"}
    lines = [f"# {title or 'a run'}", ""]
    if command:
        lines += ["The command that was run:", "", f"    {command}", ""]
    lines += [
        "## Curves",
        "",
        "| curve | what it is |",
        "|---|---|",
        f"| score/TASK | {kind.get(result.metric.name, result.metric.name + unit)}, on the task's test world |",
        f"| forgetting/TASK | the task's best since its training ended minus now{', in points' if unit else ''} |",
        "| average/... | the mean over the tasks seen so far |",
        "| measures/... | the measures of result.json after each phase |",
        "| task/index | the phase that is trained |",
        "| divergence/kl/TASK/MODULE | KL divergence (nats) of the outputs since the task's end, by module |",
        "| divergence/weights/TASK/MODULE | relative distance of the weights since the task's end |",
        "| train/... | loss, learning rate and gradient norm |",
        "",
        "All curves are over world steps of training; of a stream a step is an example.",
        "",
    ]
    if result.metric.name == "return":
        lines += ["Returns are shown, since the world gives no reference. For scores, let reference(task) return (random, best).", ""]
    if settings:
        lines += ["## Settings", "", "| setting | value |", "|---|---|"]
        lines += [f"| {key} | {_cell(value)} |" for key, value in flat_settings(settings).items()]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    """A value inside a Markdown table."""
    return str(value).replace("|", "\\|").replace("\n", " ")
