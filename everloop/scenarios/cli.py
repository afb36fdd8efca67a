"""The command line: `everloop list`, `run`, `evaluate`, `compare`, `advise` and `reproduce`."""

from __future__ import annotations

import json
import os
import signal
import sys
import sysconfig
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
from rich.console import Console
from rich.markdown import Markdown
from rich.markup import escape
from rich.table import Table

import everloop
from everloop.envs import FAMILIES
from everloop.loop import STRATEGIES
from everloop.loop.results.result import MEASURES
from everloop.scenarios import SCENARIOS
from everloop.scenarios.advise import Situation, advise, by_reason, next_command, remarks
from everloop.scenarios.check_env import CheckEnv, check_env_schema, show_findings
from everloop.scenarios.compare import COLUMNS, Compare, Comparisons, compare
from everloop.scenarios.compare_output import (
    check_picture,
    picture,
    print_comparisons,
    to_csv,
    to_dict,
    to_latex,
    write,
)
from everloop.scenarios.environment import command
from everloop.scenarios.evaluate_command import Evaluate, prepare_evaluate
from everloop.scenarios.help import first_line, help_text
from everloop.scenarios.names import did_you_mean
from everloop.scenarios.published import tables
from everloop.scenarios.reproduce import Reproduce, reproduce
from everloop.scenarios.resume import Resume, prepare_resume
from everloop.scenarios.run_command import (
    BAD_INPUT,
    INTERRUPTED,
    TERMINATED,
    USAGE_ERROR,
    Ready,
    fail,
    prepare_run,
    run_help,
    stopped,
    strategy_lines,
)
from everloop.scenarios.settings import Schema, check, check_values, read_words, schema_of
from everloop.scenarios.stdout import stdout

STDOUT = Path("-")
EXIT = {
    "0": "Done.",
    str(USAGE_ERROR): "A mistake in the command, or a run that failed.",
    str(INTERRUPTED): "Interrupted by Ctrl-C.",
    str(TERMINATED): "Terminated by SIGTERM.",
}
"""Exit status -> its meaning."""


PACKAGE = Path(everloop.__file__).parent
LIBRARIES = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")]


@dataclass(frozen=True)
class Listing:
    """The settings of `everloop list`.

    Args:
        json: Print a JSON object instead of tables.
    """

    json: bool = False


@dataclass(frozen=True)
class Command:
    """A command of `everloop`, such as `run`.

    Args:
        about: What it does, in one line.
        prepare: Function that checks the words after the command and returns what to do.
        help: Function that returns the text of --help, given the words after the command.
    """

    about: str
    prepare: Callable[[list[str]], Ready]
    help: Callable[[list[str]], str]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status, one of `EXIT`.

    Args:
        argv: The words after `everloop`; by default those of this process.
    """
    try:
        status = prepare(list(sys.argv[1:] if argv is None else argv))()
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        return unread()
    except BAD_INPUT as error:
        return fail(described(error))
    except KeyboardInterrupt as stop:
        return stopped(stop)


def described(error: BaseException) -> str:
    """Return the error in one line, with its kind and place if a user's own code raised it."""
    line = str(error) or type(error).__name__
    place = None
    for frame in traceback.extract_tb(error.__traceback__):
        path = Path(frame.filename)
        library = any(path.is_relative_to(folder) for folder in LIBRARIES)
        if path.is_file() and (path.is_relative_to(PACKAGE) or not library):
            place = path, frame.lineno
    if place is None or place[0].is_relative_to(PACKAGE):
        return line
    return f"{type(error).__name__}: {line} ({place[0].name}, line {place[1]})"


def unread() -> int:
    """Return the exit status of a process that nobody reads any more, as `| head` leaves it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python still flushes
    return 128 + signal.SIGPIPE


def prepare(words: list[str]) -> Ready:
    """Check the words after `everloop` and return what to do.

    Raises:
        ValueError: In one line, if the words are wrong. Commands raise other `BAD_INPUT` too.
    """
    if words == ["--version"]:
        return partial(_print, f"everloop {everloop.__version__}")
    if not words or words[0] in ("--help", "-h"):
        return partial(_print, _overview())
    if words[0] not in COMMANDS:
        hint = did_you_mean(words[0], COMMANDS) or f" Choose one of {', '.join(COMMANDS)}."
        raise ValueError(f"unknown command {words[0]!r}.{hint}")
    command = COMMANDS[words[0]]
    if {"--help", "-h"} & set(words):
        return partial(_print, command.help(words[1:]))
    return command.prepare(words[1:])


def _print(text: str) -> int:
    print(text)
    return 0


def _overview() -> str:
    return help_text(
        "everloop COMMAND ...\n       everloop --version",
        "Train and compare continual-learning methods.",
        {
            "commands": {name: command.about for name, command in COMMANDS.items()},
            "exit statuses": EXIT,
        },
        "everloop COMMAND --help explains a command.",
    )


def _read(
    schema: Schema, words: Sequence[str], positional: int = 0
) -> tuple[list[str], dict[str, Any]]:
    """Return the positional words and the values of all settings of a command.

    Raises:
        ValueError: If there are more than `positional` words, or for an unknown or wrong setting.
    """
    place, given = read_words(
        words, [key for key, setting in schema.items() if setting.kind is bool]
    )
    check_values(given, schema)
    if len(place) > positional:
        raise ValueError(f"{place[positional]!r} is not expected here; --help explains the command")
    return place, {key: setting.default for key, setting in schema.items()} | check(given, schema)


def _list(words: list[str]) -> Ready:
    _, values = _read(schema_of(Listing), words)
    return partial(_show_list, Listing(**values))


def _show_list(asked: Listing) -> int:
    worlds = {
        name: FAMILIES[name].about if name in FAMILIES else first_line(gym.spec(name).entry_point)
        for name in sorted(gym.registry)
        if name.startswith("everloop/")
    }
    if asked.json:
        scenarios = {
            name: {"summary": scenario.summary, "needs": scenario.needs}
            for name, scenario in SCENARIOS.items()
        }
        print(
            json.dumps(
                {"scenarios": scenarios, "strategies": strategy_lines(), "worlds": worlds}, indent=2
            )
        )
        return 0
    summaries = {
        name: scenario.summary + (f"\nneeds {scenario.needs}" if scenario.needs else "")
        for name, scenario in SCENARIOS.items()
    }
    with stdout() as console:
        for title, rows in (
            ("scenarios", summaries),
            ("strategies", strategy_lines()),
            ("worlds", worlds),
        ):
            table = Table(title=title, title_justify="left", show_header=False, box=None)
            for name, text in rows.items():
                table.add_row(name, escape(text))
            console.print(table, "", highlight=False)
    return 0


def _resume(words: list[str]) -> Ready:
    place, values = _read(schema_of(Resume, skip={"folder"}), words, 1)
    if not place:
        raise ValueError("no folder is named; write everloop resume FOLDER")
    return prepare_resume(Resume(Path(place[0]), **values))


def _evaluate(words: list[str]) -> Ready:
    place, values = _read(schema_of(Evaluate, skip={"folder"}), words, 1)
    if not place:
        raise ValueError("no folder is named; write everloop evaluate FOLDER")
    return prepare_evaluate(Evaluate(Path(place[0]), **values))


def _check_env(words: list[str]) -> Ready:
    place, values = _read(check_env_schema(), words, 1)
    if not place:
        raise ValueError("no environment is named; write everloop check-env ID")
    return partial(show_findings, CheckEnv(place[0], values.pop("import"), **values))


def _compare(words: list[str]) -> Ready:
    folders, values = _read(schema_of(Compare), words, positional=10_000)
    if not folders:
        raise ValueError("no folder is named; write everloop compare FOLDER...")
    asked = Compare(**values)
    if asked.json and asked.csv == STDOUT:
        raise ValueError(
            "--json and --csv - both print to the standard output; drop one, or give --csv a file"
        )
    if asked.figure is not None:
        check_picture(asked.figure)
    measures = MEASURES if asked.json or asked.csv is not None else COLUMNS
    return partial(_show_comparison, compare(folders, asked.baseline, measures), asked)


def _show_comparison(found: Comparisons, asked: Compare) -> int:
    for note in found.notes:
        print(note, file=sys.stderr)
    if asked.json:
        print(json.dumps(to_dict(found), indent=2, default=str))
    elif asked.csv == STDOUT:
        print(to_csv(found), end="")
    else:
        with stdout() as console:
            print_comparisons(found, console)
    for path, make in (
        (asked.csv, partial(to_csv, found)),
        (asked.latex, partial(to_latex, found, command())),
        (asked.figure, lambda: picture(found, asked.figure or Path())),
    ):
        if path not in (None, STDOUT):
            write(path, make)
            print(
                f"written: {path}", file=sys.stderr if asked.json or asked.csv == STDOUT else None
            )
    return 0


def _advise(words: list[str]) -> Ready:
    return partial(_show_advice, Situation(**_read(schema_of(Situation), words)[1]))


def _show_advice(situation: Situation) -> int:
    advice = advise(situation)
    with stdout() as console:
        for title, chosen in (
            ("fit, best first", [a for a in advice if a.fits and not a.plasticity]),
            (
                "fit, and preserve the ability to learn",
                [a for a in advice if a.fits and a.plasticity],
            ),
        ):
            rows = [(a.name, first_line(STRATEGIES[a.name]), a.reason) for a in chosen]
            console.print(
                *_advice_table(title, ("strategy", "what it does", "what it needs"), rows),
                highlight=False,
            )
        reasons = [
            (reason, ", ".join(names))
            for reason, names in by_reason([a for a in advice if not a.fits]).items()
        ]
        console.print(
            *_advice_table("do not fit", ("reason", "strategies"), reasons), highlight=False
        )
        for line in remarks(situation, advice):
            console.print(line, highlight=False)
        if (now := next_command(situation, advice)) is not None:
            console.print(f"try it: {now}", highlight=False, soft_wrap=True)
    return 0


def _advice_table(
    title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]
) -> list[Table | str]:
    """Return a table and an empty line after it, or nothing if there are no rows."""
    table = Table(*headings, title=title, title_justify="left", box=None)
    for row in rows:
        table.add_row(*map(escape, row))
    return [table, ""] if rows else []


def _reproduce(words: list[str]) -> Ready:
    place, values = _read(schema_of(Reproduce, skip={"table"}), words, 1)
    if not place:
        raise ValueError("no table is named; write everloop reproduce TABLE")
    return partial(_show_reproduction, Reproduce(place[0], **values))


def _show_reproduction(asked: Reproduce) -> int:
    console = Console()
    say = partial(console.print, highlight=False, markup=False, soft_wrap=True)
    text, report = reproduce(asked, say)
    with stdout() as table:
        table.print(Markdown(text))
    say(f"report: {report}")
    return 0


def _explained(
    about: str, words: str, prepare: Callable[[list[str]], Ready], schema: Callable[[], Schema]
) -> Command:
    """Return a command whose help text is `about` and the list of its settings."""
    return Command(
        about,
        prepare,
        lambda _: help_text(f"everloop {words}", about, {"settings": schema()} if schema() else {}),
    )


REPRODUCE = "Run the experiments of a published table and report our numbers beside its own."


def _reproduce_help(words: list[str]) -> str:
    settings = schema_of(Reproduce, skip={"table"})
    return help_text(
        "everloop reproduce TABLE [--KEY VALUE ...]",
        REPRODUCE,
        {"tables": tables(), "settings": settings},
    )


COMMANDS = {
    "list": _explained(
        "List scenarios, strategies and worlds.", "list [--json]", _list, lambda: schema_of(Listing)
    ),
    "run": Command("Run a scenario with any strategies.", prepare_run, run_help),
    "resume": _explained(
        "Go on with a run that was stopped, killed or has failed.",
        "resume FOLDER [--KEY VALUE ...]",
        _resume,
        lambda: schema_of(Resume, skip={"folder"}),
    ),
    "evaluate": _explained(
        "Measure the trained agent of a run again, beside the scores that the run recorded.",
        "evaluate FOLDER [--KEY VALUE ...]",
        _evaluate,
        lambda: schema_of(Evaluate, skip={"folder"}),
    ),
    "check-env": _explained(
        "Check an environment: the rules of Gymnasium, Stable-Baselines3 and everloop.",
        "check-env ID [--KEY VALUE ...]",
        _check_env,
        check_env_schema,
    ),
    "compare": _explained(
        "Compare runs: means over seeds with confidence intervals, and paired differences.",
        "compare FOLDER... [--KEY VALUE ...]",
        _compare,
        lambda: schema_of(Compare),
    ),
    "advise": _explained(
        "Rank the strategies that fit your problem, and say why the others do not fit.",
        "advise [--KEY VALUE ...]",
        _advise,
        lambda: schema_of(Situation),
    ),
    "reproduce": Command(REPRODUCE, _reproduce, _reproduce_help),
}
