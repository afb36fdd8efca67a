"""Progress of a run: a bar in a terminal or a notebook, elsewhere a plain line now and then."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich import progress
from rich.console import Console
from rich.text import Text

from everloop.loop import Callback, Learner, Run

REDRAW = 0.1  # seconds; redrawing at every step would take a tenth of a small network's time
SPEAK = 30.0  # seconds between two plain lines within a task
BAR = range(8, 25)  # possible widths of the bar in columns


def whole_steps(learner: Learner, steps: int) -> int:
    """Return `steps` rounded up to whole batches of a stream or whole rollouts of an algorithm."""
    return -(-steps // learner.unit) * learner.unit


def filled_up(learner: Learner, steps: Sequence[int]) -> list[str]:
    """Return a line if the last batch of a phase of a stream takes examples of the next pass.

    Args:
        learner: The learner of the stream.
        steps: World steps of each phase.
    """
    added = [n for n in (whole_steps(learner, own) - own for own in steps) if n]
    if not added:
        return []
    which = "" if len(steps) == 1 else f" of {len(added)} of the {len(steps)} phases"
    count = f"{'up to ' if len(set(added)) > 1 else ''}{max(added)}"
    examples = "example" if max(added) == 1 else "examples"
    return [f"the last batch{which} is filled up with {count} {examples} of the next pass"]


class Progress(Callback):
    """Callback that shows the task, step, time left and average over the tasks seen so far.

    Use it as a context manager.

    Args:
        console: Console to print to. If it is neither a terminal nor a notebook, plain lines are
            printed instead of a bar.
        title: Name of the run; by default the scenario, the strategies and the seed of the result.
    """

    def __init__(self, console: Console, title: str = "") -> None:
        self.console, self.title = console, title
        self.live = (console.is_terminal or console.is_jupyter) and not console.quiet
        self.bar = progress.Progress(_Line(self), console=console, expand=True)
        self.task, self.average = "", ""
        self.done, self.total = 0, 1
        self.before = 0  # steps of an earlier process

    def __enter__(self) -> Self:
        self.began = self.drawn = self.spoke = time.monotonic()
        if self.live:
            self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.live:
            self.bar.stop()

    def on_run_begin(self, run: Run) -> None:
        result = run.result
        self.total = sum(whole_steps(run.learner, steps) for steps in run.plan.steps)
        self.first = result.evaluations[0].step
        self.title = (
            self.title
            or f"{result.scenario} {'+'.join(result.strategies)} seed {result.seed}".strip()
        )
        if not self.bar.tasks:  # there is one already when a run is rolled back
            self.bar.add_task("", total=None)

    def _restored(self, run: Run) -> None:
        self.on_run_begin(run)
        self.done = self.before = min(run.steps - self.first, self.total)
        if not run.done:
            self.on_phase_begin(run)

    def on_phase_begin(self, run: Run) -> None:
        name = run.tasks[0].name if len(run.tasks) == 1 else "all tasks"
        self.task = f"{name} ({run.phase + 1}/{len(run.plan.phases)})"
        self.speak()

    def on_step(self, run: Run) -> None:
        self.done = min(run.steps - self.first, self.total)
        now = time.monotonic()
        if self.live and now - self.drawn > REDRAW:
            self.draw()
        elif now - self.spoke > SPEAK:
            self.speak()

    def on_evaluation(self, run: Run) -> None:
        result = run.result
        average = result.metric.text(result.average_now(), "unknown")
        self.average = f"{result.metric.name} {average} {result.metric.unit}".rstrip()
        self.draw()
        if result.evaluations[-1].ends_phase:
            self.speak()

    def on_run_end(self, run: Run) -> None:
        self.done = self.total
        self.draw()

    def draw(self) -> None:
        """Redraw the bar."""
        self.drawn = time.monotonic()
        if self.live:
            self.bar.refresh()

    def speak(self) -> None:
        """Print a plain line, unless there is a bar."""
        self.spoke = time.monotonic()
        if not self.live:
            facts = [
                f"task {self.task}, step {self.done} of {self.total}",
                *([f"average {self.average}"] if self.average else []),
            ]
            line = (
                f"[{_clock(self.elapsed)}] {self.title}: {', '.join([*facts, f'{self.left} left'])}"
            )
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)
            self.console.file.flush()

    @property
    def elapsed(self) -> float:
        """Seconds since this process began or resumed the run."""
        return time.monotonic() - self.began

    @property
    def left(self) -> str:
        """The time left, h:mm:ss, if the remaining steps are as fast as those so far."""
        done = self.done - self.before
        return _clock(self.elapsed * (self.total - self.done) / done) if done else "-:--:--"

    def line(self, width: int) -> str:
        """Return the bar's line, at most `width` columns.

        Step, time and average are always complete; the bar and the task's name get the rest.
        """
        facts = f"{self.done}/{self.total}  {self.left} left" + (
            f"  {self.average}" if self.average else ""
        )
        room = width - len(facts) - 2
        bar = min(BAR[-1], room - len(self.task) - 2)
        if bar not in BAR:
            return f"{_shortened(self.task, room)}  {facts}"
        filled = round(bar * min(1.0, self.done / self.total))
        return f"{self.task}  {'━' * filled}{'╌' * (bar - filled)}  {facts}"


class _Line(progress.ProgressColumn):
    """A column of rich that is the whole line, cut to the width of the terminal."""

    def __init__(self, shown: Progress) -> None:
        super().__init__()
        self.shown = shown

    def render(self, task: progress.Task) -> Text:
        return Text(self.shown.line(self.shown.console.width), no_wrap=True, overflow="crop")


def _shortened(name: str, width: int) -> str:
    """Return `name` in at most `width` columns, with the number of its phase at the end."""
    if len(name) <= width:
        return name
    place = name[name.rfind(" (") :]
    return name[: max(0, width - len(place) - 1)] + "…" + place


def _clock(seconds: float) -> str:
    """Return a duration as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
