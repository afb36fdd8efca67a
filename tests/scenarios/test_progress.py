"""The output of a run during and after it, in terminals of any width and in pipes."""

from __future__ import annotations

import io
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from everloop.contract import ACCURACY, RETURN, SCORE, Metric
from everloop.loop import Evaluation, Result
from everloop.scenarios import Experiment, SplitDigits, SwitchingPlant, progress
from everloop.scenarios.progress import Progress
from everloop.scenarios.report import phase_names, print_scores, summary

LONG = "a task with quite a long name [of brackets]"


def console(width: int = 80, terminal: bool = True) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system=None)


def text(shown: Console) -> str:
    assert isinstance(shown.file, io.StringIO)
    return shown.file.getvalue()


def result(
    tasks: int = 5,
    metric: Metric = ACCURACY,
    name: str = "{0}",
    phases: list[list[int]] | None = None,
    level: float = 50.0,
) -> Result:
    names, row = [name.format(i) for i in range(tasks)], [level] * tasks
    order = [[i] for i in range(tasks)] if phases is None else phases
    ends = [Evaluation(100 * (i + 1), i, True, list(row), list(row)) for i in range(len(order))]
    return Result(
        names,
        order,
        metric,
        [Evaluation(0, None, False, [0.0] * tasks, [0.0] * tasks), *ends],
        scenario="digits",
        strategies=["ewc", "replay"],
        seed=3,
    )


def run_of(result: Result, step: int = 0, phase: int = 0, total: int = 100) -> Any:
    """Return a stand-in for a run with the attributes that the progress bar reads."""
    tasks = [SimpleNamespace(id=j, name=result.tasks[j]) for j in result.phases[phase]]
    plan = SimpleNamespace(phases=result.phases, steps=[total])
    learner = SimpleNamespace(unit=1)
    return SimpleNamespace(
        result=result, steps=step, phase=phase, tasks=tasks, plan=plan, learner=learner
    )


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("name", ["{0}", LONG + "{0}"], ids=["short", "long"])
def test_task_step_time_and_average_are_whole_at_any_width(
    width: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown, now = result(name=name), [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Progress(console(width)) as bar:
        bar.on_run_begin(run_of(shown, total=123_456))
        shown.evaluations = shown.evaluations[:3]
        bar.on_phase_begin(run_of(shown, phase=2))
        bar.on_evaluation(run_of(shown))
        now[0] += 100
        bar.on_step(run_of(shown, 12_345))
        line = bar.line(width)
    left = round(100 * (123_456 - 12_345) / 12_345)
    assert f"12345/123456  0:{left // 60:02}:{left % 60:02} left  accuracy 50.0 %" in line
    assert "(3/5)" in line
    assert len(line) <= width
    assert line.startswith("2 (3/5)" if len(name) < 10 else "a task")


def test_the_bars_share_is_the_share_of_the_steps() -> None:
    with Progress(console()) as bar:
        bar.on_run_begin(run_of(result(), total=1000))
        for done in (0, 250, 500, 1000, 1010):
            bar.on_step(run_of(result(), done))
            line = bar.line(80)
            filled, empty = line.count("━"), line.count("╌")
            assert filled / (filled + empty) == pytest.approx(
                min(1, done / 1000), abs=0.5 / (filled + empty)
            )
            assert f"{min(done, 1000)}/1000" in line


def test_without_a_terminal_plain_lines_come_at_each_task_and_every_30_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    shown, out = result(tasks=2), console(40, terminal=False)
    with Progress(out) as lines:
        lines.on_run_begin(run_of(shown, total=200))
        for phase in (0, 1):
            lines.on_phase_begin(run_of(shown, phase=phase))
            for step in range(1, 101):
                now[0] += 0.9
                lines.on_step(run_of(shown, 100 * phase + step))
            lines.on_evaluation(run_of(shown))
    assert text(out).splitlines() == [
        "[0:00:00] digits ewc+replay seed 3: task 0 (1/2), step 0 of 200, -:--:-- left",
        "[0:00:31] digits ewc+replay seed 3: task 0 (1/2), step 34 of 200, 0:02:29 left",
        "[0:01:01] digits ewc+replay seed 3: task 0 (1/2), step 68 of 200, 0:01:59 left",
        "[0:01:30] digits ewc+replay seed 3: task 0 (1/2), step 100 of 200, average accuracy 50.0 "
        "%, 0:01:30 left",
        "[0:01:30] digits ewc+replay seed 3: task 1 (2/2), step 100 of 200, average accuracy 50.0 "
        "%, 0:01:30 left",
        "[0:02:01] digits ewc+replay seed 3: task 1 (2/2), step 134 of 200, average accuracy 50.0 "
        "%, 0:00:59 left",
        "[0:02:31] digits ewc+replay seed 3: task 1 (2/2), step 168 of 200, average accuracy 50.0 "
        "%, 0:00:29 left",
        "[0:03:00] digits ewc+replay seed 3: task 1 (2/2), step 200 of 200, average accuracy 50.0 "
        "%, 0:00:00 left",
    ]


def test_quiet_shows_nothing() -> None:
    for terminal in (True, False):
        out = Console(file=io.StringIO(), force_terminal=terminal, quiet=True)
        with Progress(out) as quiet:
            made = run_of(result(), 10, total=10)
            quiet.on_run_begin(made)
            quiet.on_phase_begin(made)
            quiet.on_step(made)
            quiet.on_evaluation(made)
            quiet.on_run_end(made)
        assert text(out) == ""


def test_python_shows_progress_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    scenario = SplitDigits(iterations=2, tasks=["0-1"])
    Experiment(scenario, "none").run()
    assert capsys.readouterr().out == ""
    Experiment(scenario, "none").run(progress=True)
    assert (
        "split-digits none seed 0: task 0-1 (1/1), step 64 of 64, average accuracy"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        (ACCURACY, "average accuracy 50.0 %, forgetting 0.0 points, average incremental 50.0 %"),
        (
            Metric("entity F1", "%"),
            "average entity F1 50.0 %, forgetting 0.0 points, average incremental 50.0 %",
        ),
        (SCORE, "average score 50.00, forgetting 0.00"),
        (RETURN, "average return 50, drop of return 0"),
    ],
)
def test_the_summary_speaks_in_the_metrics_own_words(metric: Metric, said: str) -> None:
    assert summary(result(metric=metric)) == said
    out = console()
    print_scores({"x": result(metric=metric)}, out)
    assert said in text(out)
    assert ("reference(task) return (random, best)" in " ".join(text(out).split())) == (
        metric == RETURN
    )


def test_one_phase_forgets_nothing_and_has_no_incremental_average() -> None:
    assert (
        summary(result(3, phases=[[0, 1, 2]]))
        == "average accuracy 50.0 %, no forgetting with one phase"
    )


def test_scores_that_were_not_measured_are_explained() -> None:
    hint = "Only tasks seen so far are evaluated; --eval-tasks all evaluates the others too."
    whole, seen = result(2), result(2)
    seen.evaluations[0].scores[:] = [float("nan")] * 2
    for shown, hinted in ((whole, False), (seen, True)):
        out = console()
        print_scores({"x": shown}, out)
        assert (hint in text(out).splitlines()) == hinted


SMALL = {"num_tasks": 2, "token_size": 8, "hidden_size": 8, "eval_every": 10_000}


@pytest.mark.parametrize(
    "scenario",
    [
        SplitDigits(epochs=1, tasks=["0-1", "2-3"]),
        SwitchingPlant(steps=100, **SMALL),
        SwitchingPlant(steps=100, algorithm="sac", **SMALL),
    ],
    ids=["stream", "ppo", "sac"],
)
def test_the_total_is_the_number_of_steps_really_made(scenario: Any) -> None:
    out = console(terminal=False)
    with Progress(out) as lines:
        learned = Experiment(scenario, "none").run([lines])
    assert f"step {learned.steps} of {learned.steps}, " in text(out).splitlines()[-1]
    assert learned.steps % 32 == 0


@dataclass
class Growing(SwitchingPlant):
    """Each task has one step more than the one before."""

    def task_steps(self, world: Any, task: int) -> int:
        return self.steps + task


@pytest.mark.parametrize(
    ("scenario", "said"),
    [
        (
            SwitchingPlant(steps=100, **SMALL),
            ["steps 100 is rounded up to 2048: one rollout of 32 copies x 64 steps"],
        ),
        (
            SwitchingPlant(steps=2049, **SMALL),
            ["steps 2049 is rounded up to 4096: 2 rollouts of 32 copies x 64 steps"],
        ),
        (SwitchingPlant(steps=4096, **SMALL), []),
        (
            Growing(steps=2048, **SMALL),
            ["steps 2049 is rounded up to 4096: 2 rollouts of 32 copies x 64 steps"],
        ),
        (
            SwitchingPlant(steps=4096, **SMALL | {"eval_every": 3000}),
            ["eval_every 3000 is rounded up to 4096: 2 rollouts of 32 copies x 64 steps"],
        ),
        (
            SwitchingPlant(algorithm="sac", steps=100, **SMALL),
            ["steps 100 is rounded up to 128: 4 rollouts of 32 copies x 1 step"],
        ),
    ],
    ids=["one", "two", "none", "later task", "evaluation", "sac"],
)
def test_steps_that_are_rounded_up_are_noted(scenario: Any, said: list[str]) -> None:
    notes = Experiment(scenario).notes
    assert [note for note in notes if "rounded up" in note] == said
    assert not any("rounded up" in note for note in Experiment(SplitDigits(epochs=1)).notes)


@pytest.mark.parametrize(
    ("settings", "strategies", "said"),
    [
        # 289, 289, 291, 289 and 284 examples in batches of 32
        ({}, "none", ["the last batch of 5 of the 5 phases is filled up with up to 31 examples"]),
        (
            {"tasks": ["0"], "batch_size": 145},
            "none",
            ["the last batch is filled up with 1 example "],
        ),
        (
            {"batch_size": 17},
            "none",
            ["the last batch of 2 of the 5 phases is filled up with up to 15 examples"],
        ),
        ({}, "joint", ["the last batch is filled up with 30 examples"]),
        ({"epochs": 1, "iterations": 9}, "none", []),
    ],
)
def test_a_stream_says_that_its_last_batches_are_filled_up(
    settings: dict[str, Any], strategies: str, said: list[str]
) -> None:
    notes = Experiment(SplitDigits(**{"epochs": 1, **settings}), strategies).notes
    found = [note for note in notes if "filled up" in note]
    assert len(found) == len(said)
    assert all(note.startswith(line) for note, line in zip(found, said, strict=True))
    assert all(note.endswith(" of the next pass") for note in found)


@pytest.mark.parametrize(
    ("tasks", "name"), [(5, "{0}"), (10, LONG + "{0}"), (20, "task {0}"), (1, "[a]")]
)
def test_every_number_is_readable_at_80_columns(tasks: int, name: str) -> None:
    shown = result(tasks, name=name)
    for i, row in enumerate(shown.evaluations[1:]):
        row.scores[:] = [10.0 + i] * tasks
    out = console()
    print_scores({"a [title]": shown}, out)
    lines = text(out).splitlines()
    assert max(map(len, lines)) <= 80
    assert "a [title]" in text(out)
    whole = tasks <= 5
    assert ("the complete matrix is in result.json" in text(out)) != whole
    last = f"{10.0 + tasks - 1:.1f}"
    assert text(out).count(last) == (tasks if whole else tasks + 1) + (
        text(out).count(f"accuracy {last}") + text(out).count(f"incremental {last}")
    )
    assert "…" not in text(out)


def test_two_matrices_of_five_tasks_stand_side_by_side_in_80_columns() -> None:
    shown = result(name="{0}-{0}")
    out = console()
    print_scores({"plain fine-tuning": shown, "EWC + replay": shown}, out)
    assert any(
        "plain fine-tuning" in line and "EWC + replay" in line for line in text(out).splitlines()
    )


def test_a_task_that_comes_back_has_rows_of_its_own() -> None:
    assert phase_names(result(2, phases=[[0], [1], [0], [0, 1]])) == [
        "0 #1",
        "1",
        "0 #2",
        "all tasks",
    ]


@pytest.mark.parametrize(
    ("scenario", "updates", "who", "advice"),
    [
        (SplitDigits(iterations=1), 1, "each task gets", ": raise --iterations"),
        (
            SplitDigits(epochs=1, tasks=["0-1", "8-9"]),
            9,
            "task 8-9 gets",
            ": raise --epochs, or lower --batch-size",
        ),
        (
            SwitchingPlant(steps=2048, num_tasks=1, token_size=8, hidden_size=8),
            20,
            "task plant-0 gets",
            ": raise --steps",
        ),
        (
            SwitchingPlant(
                steps=2049,
                num_tasks=2,
                token_size=8,
                hidden_size=8,
                recurrent=False,
                batch_size=512,
            ),
            40,
            "each task gets",
            ": raise --steps",
        ),
    ],
    ids=["iterations", "epochs", "recurrent ppo", "ppo"],
)
def test_a_task_with_few_updates_is_named_with_their_number(
    scenario: Any, updates: int, who: str, advice: str
) -> None:
    experiment = Experiment(scenario, "none")
    note = experiment.notes[-1]
    assert note.startswith(
        f"{who} only {updates} update{'' if updates == 1 else 's'}, but even small networks need"
    )
    assert note.endswith(advice)
    counted = [0]

    def count(*args: Any) -> None:
        counted[0] += 1

    experiment.learner.optimizer.register_step_post_hook(count)
    experiment.plan = type(experiment.plan)(
        [experiment.plan.phases[-1]], [experiment.plan.steps[-1]], 10**9, 16
    )
    experiment.run()
    assert counted[0] == updates
    assert Experiment(SplitDigits(iterations=50), "none").notes == []
    torch.manual_seed(0)
