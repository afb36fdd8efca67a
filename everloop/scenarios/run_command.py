"""`everloop run`: one run in this process, or several runs in processes of their own."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from everloop.loop import Checkpoint, CheckpointError, NotFiniteError, Result, Strategy
from everloop.loop.checkpoint import checkpoints
from everloop.scenarios import SCENARIOS, arguments
from everloop.scenarios.arguments import GENERAL, WHERE, Request
from everloop.scenarios.experiment import Experiment, check_pictures, scenario_path
from everloop.scenarios.folder import (
    CHECKPOINTS,
    ERROR,
    RESULT,
    Unwritable,
    complete,
    files_of,
    holds,
)
from everloop.scenarios.help import commented_yaml, first_line, help_text
from everloop.scenarios.jobs import Terminated, run_all
from everloop.scenarios.names import factories, find_object, is_path
from everloop.scenarios.progress import Progress
from everloop.scenarios.report import print_scores
from everloop.scenarios.scenario import Scenario
from everloop.scenarios.settings import Schema, Setting
from everloop.scenarios.strategies import JOINT, PLAIN, find_strategy, known_methods, strategy_key

Ready = Callable[[], int]
USAGE_ERROR, INTERRUPTED, TERMINATED = 2, 130, 143
BAD_INPUT = (ValueError, TypeError, OSError, ImportError, OverflowError, MemoryError)
"""Errors that end the command in one line and exit status 2."""


def fail(message: str, status: int = USAGE_ERROR) -> int:
    """Print an error in one line and return the exit status."""
    print(f"everloop: error: {' '.join(message.split())}", file=sys.stderr)
    return status


def stopped(stop: KeyboardInterrupt, more: str = "") -> int:
    """Print in one line that the command was stopped, and `more`; return the exit status."""
    word, status = (
        ("terminated", TERMINATED) if isinstance(stop, Terminated) else ("interrupted", INTERRUPTED)
    )
    return fail(f"{word}{more}", status)


def prepare_run(words: list[str]) -> Callable[[], int]:
    """Check the words after `everloop run` and return what to do.

    Raises:
        ValueError: In one line, if a setting is wrong. A scenario may raise other `BAD_INPUT`.
    """
    request = arguments.read(words)
    hide_library_bars(request.values["quiet"])
    torch.set_num_threads(request.values["threads"])
    if request.values["print_config"]:
        return partial(_print_config, request)
    if len(request.strategies) * len(request.seeds) > 1:
        return _prepare_many(request)
    check_pictures()
    experiment = request.experiment(request.strategies[0], request.seeds[0], None)
    out = request.values["out"]
    files_of(folder := experiment.folder() if out is None else Path(out))
    return partial(
        _go,
        experiment,
        folder,
        [*experiment.notes, *request.notes(experiment.scenario)],
        request.values,
    )


def hide_library_bars(quiet: bool) -> None:
    """Turn off the progress bars of the Hugging Face libraries, imported already or later.

    Args:
        quiet: Also in a terminal.
    """
    if not quiet and sys.stderr.isatty():
        return
    libraries = {
        "datasets": "HF_DATASETS_DISABLE_PROGRESS_BARS",
        "huggingface_hub.utils": "HF_HUB_DISABLE_PROGRESS_BARS",
    }
    for module, variable in libraries.items():
        os.environ.setdefault(variable, "1")  # read when the library is imported
        if (library := sys.modules.get(module)) is not None:
            library.disable_progress_bars()


def console_for(quiet: bool, as_json: bool, notes: Sequence[str]) -> Console:
    """Return the console for progress, the standard error output with --json; print the notes."""
    console = Console(stderr=as_json, quiet=quiet)
    for note in notes:
        say(console, f"note: {note}")
    return console


def say(console: Console, line: str) -> None:
    """Print a line without wrapping it."""
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def _go(experiment: Experiment, out: Path, notes: Sequence[str], values: dict[str, Any]) -> int:
    """Run it in the folder `out`, or show a complete run with the same settings from there."""
    console = console_for(values["quiet"], values["json"], notes)
    title = f"{experiment.title} seed {experiment.seed}"
    held = "nothing" if experiment.overwrite else holds(out, experiment.config_text())
    if held == "a complete run":
        say(console, f"{title}: already complete in {out}; use --overwrite to run it again")
        return show(Result.load(out), title, out, console, values["json"])
    if held == "an unfinished run":
        return fail(
            f"{out} holds an unfinished run; go on with it: everloop resume {out}; or replace it: "
            "--overwrite"
        )
    experiment.overwrite |= held == "a run to start over"
    experiment.move_to(out)
    again = "; the unfinished run there starts over" if held == "a run to start over" else ""
    say(console, f"{title}: writing to {out}{again}")
    return execute(experiment, title, out, console, values["json"])


def execute(
    experiment: Experiment,
    title: str,
    out: Path,
    console: Console,
    as_json: bool,
    checkpoint: Checkpoint | None = None,
) -> int:
    """Run an experiment, or go on with it from a checkpoint, and return the exit status."""
    try:
        with Progress(console, title) as progress, warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: say(console, f"note: {message}")
            if checkpoint is None:
                result = experiment.run([progress])
            else:
                result = experiment.resume(checkpoint, [progress])
    except NotFiniteError as error:
        return fail(experiment.guards.way_out(error, out))
    except (FileExistsError, Unwritable, CheckpointError) as error:
        return fail(str(error))
    except KeyboardInterrupt as stop:
        step = experiment.learner.steps
        return stopped(stop, f" at step {step}; {way_back(out)}")
    except OSError as error:
        line = _traced(error, out, experiment.learner.steps)
        return fail(f"{line}; {way_back(out)}")
    except Exception as error:  # a user's world, network or strategy can raise anything
        return fail(_traced(error, out, experiment.learner.steps))
    return show(result, title, out, console, as_json)


def way_back(out: Path) -> str:
    """Return how to go on with the run in `out` after it was stopped."""
    if not out.exists():
        return "its folder is gone, so run it again"
    if checkpoints(out / CHECKPOINTS):
        return f"go on with it: everloop resume {out}"
    return f"its log is in {out}; the same command starts the run over"


def show(result: Result, title: str, out: Path, console: Console, as_json: bool) -> int:
    """Print the result of a complete run and return the exit status."""
    if as_json:
        print(json.dumps(result.to_dict(), indent=2))
    print_scores({title: result}, console)
    console.print(
        f"result: {out / RESULT}    curves: tensorboard --logdir {out}",
        highlight=False,
        soft_wrap=True,
    )
    return 0


def _traced(error: Exception, out: Path, step: int) -> str:
    """Return the error in one line, and write its traceback into the folder if possible."""
    line = f"{type(error).__name__} at step {step}: {error}"
    try:
        (out / ERROR).write_text("".join(traceback.format_exception(error)))
    except OSError:
        with contextlib.suppress(OSError):
            (out / ERROR).unlink(missing_ok=True)  # on a full disk the file would be empty
        return line
    return f"{line}; the traceback is in {out / ERROR}"


@dataclass(frozen=True)
class Cell:
    """One of several runs.

    Args:
        title: Scenario, strategies and seed.
        folder: Folder of the run.
        words: The words after `everloop`.
    """

    title: str
    folder: Path
    words: list[str]


def _prepare_many(request: Request) -> Callable[[], int]:
    check_pictures()
    first = [request.experiment(names, request.seeds[0], None) for names in request.strategies]
    cells = [
        _cell(request, names, experiment, seed)
        for names, experiment in zip(request.strategies, first, strict=True)
        for seed in request.seeds
    ]
    return partial(
        _go_many, cells, [*first[0].notes, *request.notes(first[0].scenario)], request.values
    )


def _cell(request: Request, names: Sequence[str], experiment: Experiment, seed: int) -> Cell:
    group, out = experiment.folder().parent, request.values["out"]
    folder = (group if out is None else Path(out) / group.name) / str(seed)
    kept = {
        key: value for key, value in request.flags.items() if key not in ("seeds", "jobs", "json")
    }
    own = {
        "strategies": ",".join(names),
        "seed": seed,
        "out": folder,
        "overwrite": "true",
        "quiet": "true",
    }
    flags = [
        f"--{key}" if value is True else f"--{key}={value}"
        for key, value in {**kept, **own}.items()
    ]
    return Cell(
        f"{experiment.title} seed {seed}", folder, ["run", scenario_path(request.scenario), *flags]
    )


def _go_many(cells: Sequence[Cell], notes: Sequence[str], values: dict[str, Any]) -> int:
    """Run what is not complete. If a run fails, the others go on, and the last line names it."""
    console = console_for(values["quiet"], values["json"], notes)
    tell = partial(say, console)
    todo = [cell for cell in cells if values["overwrite"] or not complete(cell.folder)]
    resumed = [cell for cell in todo if not values["overwrite"] and _can_resume(cell)]
    for cell in cells:
        if cell not in todo:
            tell(
                f"{cell.title}: already complete in {cell.folder}; use --overwrite to run it again"
            )
    failed: list[str] = []

    def started(i: int) -> None:
        again = " over" if files_of(todo[i].folder) else ""
        word = "resumed" if todo[i] in resumed else f"started{again}"
        tell(f"{todo[i].title}: {word}, writing to {todo[i].folder}")

    def ended(i: int, error: str | None) -> None:
        if error is not None:
            failed.append(f"{todo[i].title}: {error}")
            tell(f"{todo[i].title}: failed: {error}")
            return
        result = Result.load(todo[i].folder)
        metric = result.metric
        average = f"{metric.text(result.average_score)} {metric.unit}".rstrip()
        tell(f"{todo[i].title}: average {metric.name} {average}")

    try:
        run_all(
            [
                ["resume", str(cell.folder), "--quiet"] if cell in resumed else cell.words
                for cell in todo
            ],
            values["jobs"],
            ended,
            started,
        )
    except KeyboardInterrupt as stop:
        return stopped(stop, "; the same command runs the rest")
    folders = [cell.folder for cell in cells if complete(cell.folder)]
    if values["json"]:
        print(json.dumps([Result.load(folder).to_dict() for folder in folders], indent=2))
    if folders:
        tell(
            "compare them: everloop compare "
            f"{shlex.join(sorted({str(folder.parent) for folder in folders}))}"
        )
    return fail(f"{len(failed)} of {len(cells)} runs failed: {'; '.join(failed)}") if failed else 0


def _can_resume(cell: Cell) -> bool:
    """Return whether the folder of a run holds a checkpoint to go on from."""
    return bool(checkpoints(cell.folder / CHECKPOINTS))


def _print_config(request: Request) -> int:
    names, scenario = request.strategies[0], request.scenario
    general = {"scenario": Setting("scenario", str, None, "Scenario to run."), **GENERAL}
    made = factories(scenario)
    own = {
        key: setting
        for key, setting in request.schema.items()
        if "." not in key or key.partition(".")[0] not in made
    }
    chosen = {
        f"strategy {name}": request.groups[strategy_key(name)]
        for name in names
        if name not in (PLAIN, JOINT)
    }
    values = request.values | {"strategies": names, "scenario": scenario_path(scenario)}
    values |= {
        name: getattr(arguments.build(scenario, request.values, request.given), name)
        for name in made
    }
    for title, schema in chosen.items():  # without a seed, a strategy uses the run's
        chosen[title] = {
            key: setting
            for key, setting in schema.items()
            if not (key.endswith(".seed") and values[key] is None)
        }
    print(
        commented_yaml({"general": general, f"scenario {scenario.name}": own, **chosen}, values),
        end="",
    )
    return 0


def run_help(words: list[str]) -> str:
    """Return the help of `run`, of a scenario, or, after `--help STRATEGY`, of a strategy."""
    names = [word for word in words if not word.startswith("-")]
    scenarios = [
        name
        for name in names
        if name in SCENARIOS or (is_path(name) and not _is_own_strategy(name))
    ]
    scenario = arguments.find_scenario(scenarios[0]) if scenarios else None
    strategy = next(
        (
            name
            for name in names
            if name in known_methods() or (is_path(name) and _is_own_strategy(name))
        ),
        None,
    )
    if strategy is not None:
        return strategy_help(strategy, scenario or SCENARIOS["split-digits"])
    if names and scenario is None:
        arguments.find_scenario(names[0])
    return _general_help() if scenario is None else _scenario_help(scenario)


def _is_own_strategy(path: str) -> bool:
    found = find_object(path)
    return inspect.isclass(found) and issubclass(found, Strategy)


def _general_help() -> str:
    return help_text(
        "everloop run SCENARIO [--KEY VALUE ...]\n       everloop run --config FILE [--KEY VALUE "
        "...]",
        "Run a scenario: one of those below, or package.module:Class for your own.",
        {
            "scenarios": {name: scenario.summary for name, scenario in SCENARIOS.items()},
            "settings of every run": {**GENERAL, **WHERE},
        },
        "Values in brackets are the defaults. everloop run SCENARIO --help lists the settings of a "
        "scenario too.",
    )


def _scenario_help(scenario: type[Scenario]) -> str:
    groups: dict[str, Schema] = {}
    for key, setting in arguments.scenario_schema(scenario).items():
        group = key.rpartition(".")[0]
        groups.setdefault(f"settings of {group or scenario.name}", {})[key] = setting
    name = scenario_path(scenario)
    return help_text(
        f"everloop run {name} [--KEY VALUE ...]",
        scenario.summary + (f"\nNeeds {scenario.needs}." if scenario.needs else ""),
        {"settings of every run": {**GENERAL, **WHERE}, **groups, "strategies": strategy_lines()},
        f"everloop run {name} --help STRATEGY lists the settings of a strategy. Values in brackets "
        "are the defaults.",
    )


def strategy_help(name: str, scenario: type[Scenario]) -> str:
    """Return the help of one strategy, with the scenario's defaults.

    Args:
        name: Registered name or path of the strategy.
        scenario: The scenario's class.
    """
    strategy, key = find_strategy(name), strategy_key(name)
    about = (
        (inspect.getdoc(strategy) or "").partition("\n")[0]
        if is_path(name)
        else first_line(strategy)
    )
    schema = arguments.strategy_schemas(scenario, [[name]])[key]
    return help_text(
        f"--strategies {name} [--{key}.KEY VALUE ...]",
        about,
        {f"settings of {key}, in {scenario.name}": schema},
    )


def strategy_lines() -> dict[str, str]:
    """Return name -> description of every strategy, "none" and "joint" included."""
    special = {
        PLAIN: "Plain fine-tuning, the usual lower bound.",
        JOINT: "Training on all tasks at once, the usual upper bound.",
    }
    return special | {name: first_line(strategy) for name, strategy in known_methods().items()}
