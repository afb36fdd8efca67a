"""The command line: `everloop list`, `run SCENARIO`, `advise`, `reproduce TABLE`."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

import gymnasium as gym
import torch
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from rich.console import Console
from rich.markdown import Markdown
from rich.markup import escape
from rich.table import Table

from everloop.loop import STRATEGIES, NotFiniteError
from everloop.scenarios import SCENARIOS
from everloop.scenarios.advise import Situation, advise, remarks
from everloop.scenarios.experiment import JOINT, PLAIN, Experiment, check_strategies
from everloop.scenarios.report import ProgressBar, print_scores
from everloop.scenarios.reproduce import REPORT, choose_rows, load_table, reproduce
from everloop.scenarios.scenario import Scenario

USAGE_ERROR, INTERRUPTED = 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 2 for bad input or a broken run, 130 when interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        command = _command(words)
    except (ArgumentError, ValueError, TypeError, OSError) as error:
        return _fail(str(error))
    return command()


def _command(words: list[str]) -> Callable[[], int]:
    """What the words ask for, checked and ready to go. Raises an error that says what is wrong with them."""
    if words == ["list"]:
        return _list
    if words[:1] == ["run"] and len(words) > 1 and not words[1].startswith("-"):
        return _run(words[1], words[2:])
    if words[:1] == ["advise"] and not {"-h", "--help"} & set(words):
        return partial(_advise, Situation(**_advise_parser().parse_args([_underscored(word) for word in words[1:]]).as_dict()))
    if words[:1] == ["reproduce"] and len(words) > 1 and not words[1].startswith("-"):
        return _reproduce(words[1], words[2:])
    _usage().parse_args(words)
    raise ValueError(f"the command is {' '.join(words)!r}, allowed: list, run SCENARIO, advise, reproduce TABLE")


def _fail(message: str) -> int:
    print(f"everloop: error: {' '.join(message.split())}", file=sys.stderr)
    return USAGE_ERROR


def _usage() -> ArgumentParser:
    """Explains the two commands, and refuses anything else."""
    parser = ArgumentParser(prog="everloop", description="Continual learning in a closed loop.", exit_on_error=False)
    commands = parser.add_subcommands()
    commands.add_subcommand("list", ArgumentParser(exit_on_error=False), help="scenarios, strategies and worlds")
    run = ArgumentParser(
        exit_on_error=False,
        usage="everloop run SCENARIO [options]   (everloop run SCENARIO --help lists its options)",
        description=f"SCENARIO: {', '.join(SCENARIOS)}, or package.module:Class of your own",
    )
    run.add_argument("scenario")
    commands.add_subcommand("run", run, help="run a scenario")
    commands.add_subcommand("advise", _advise_parser(), help="which strategies fit")
    commands.add_subcommand("reproduce", _reproduce_parser(), help="run a table of published numbers")
    return parser


def _advise_parser() -> ArgumentParser:
    parser = ArgumentParser(prog="everloop advise", description="Which strategies fit what you have.", exit_on_error=False)
    parser.add_class_arguments(Situation, None)
    return parser


def _advise(situation: Situation) -> int:
    console, advice = Console(), advise(situation)
    for title, chosen in (
        ("fit, the best first", [a for a in advice if a.fits and not a.for_learning]),
        ("fit, and keep the network able to learn", [a for a in advice if a.fits and a.for_learning]),
        ("do not fit", [a for a in advice if not a.fits]),
    ):
        table = Table(title=title, title_justify="left", show_header=False, box=None)
        for a in chosen:
            table.add_row(a.name, _first_line(STRATEGIES[a.name]), escape(a.reason))
        console.print(table, "", highlight=False)
    for line in remarks(situation, advice):
        console.print(line, highlight=False)
    return 0


def _reproduce_parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="everloop reproduce",
        exit_on_error=False,
        usage="everloop reproduce TABLE [options]",
        description="Runs what the table asks for and --out does not hold yet, and writes it beside the published numbers.",
    )
    parser.add_argument("table", help="a path, or the name of one in benchmarks/tables")
    parser.add_argument("--rows", type=str, default="", help="comma-separated methods or columns that are run (default: all)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, one thread each")
    parser.add_argument("--out", type=str, default="runs/reproduce", help="the runs' folder")
    parser.add_argument("--report", type=str, default=str(REPORT), help="where the table is written")
    return parser


def _reproduce(name: str, words: Sequence[str]) -> Callable[[], int]:
    args = _reproduce_parser().parse_args([name, *words])
    rows = [part.strip() for part in args.rows.split(",") if part.strip()]
    choose_rows(load_table(name), rows)
    if args.jobs < 1:
        raise ValueError(f"jobs is {args.jobs}, allowed: 1 or more")

    def go() -> int:
        console = Console()

        def tell(line: str) -> None:
            console.print(line, highlight=False, markup=False)

        try:
            console.print(Markdown(reproduce(name, rows, Path(args.out), Path(args.report), args.jobs, tell)))
        except (ValueError, OSError) as error:
            return _fail(str(error))
        return 0

    return go


def find_scenario(name: str) -> type[Scenario]:
    """The scenario class called `name`, or at `package.module:Class`. Raises ValueError that names it."""
    if ":" in name:
        module, _, attribute = name.partition(":")
        sys.path.insert(0, str(Path.cwd()))
        try:
            found = getattr(import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"scenario {name!r} cannot be imported: {error}") from None
        if not (isinstance(found, type) and issubclass(found, Scenario) and hasattr(found, "name") and hasattr(found, "summary")):
            raise ValueError(f"scenario {name!r} is {found!r}, allowed: a subclass of everloop.scenarios.Scenario with name and summary")
        return found
    if name not in SCENARIOS:
        raise ValueError(f"unknown scenario {name!r}: choose one of {', '.join(SCENARIOS)}, or package.module:Class")
    return SCENARIOS[name]


def _parser(scenario: type[Scenario]) -> ArgumentParser:
    parser = ArgumentParser(prog=f"everloop run {scenario.name}", description=scenario.summary, exit_on_error=False)
    parser.add_argument(
        "--strategies",
        type=str,
        default=PLAIN,
        help=f"comma-separated: {', '.join(STRATEGIES)}; {PLAIN}: fine-tuning; {JOINT}: all tasks at once",
    )
    parser.add_argument("--seed", type=int, default=0, help="of networks, worlds and strategies")
    parser.add_argument("--out", type=str, help="the run's folder, by default runs/SCENARIO/STRATEGIES/SEED")
    parser.add_argument("--overwrite", action="store_true", help="replace a run that the folder holds")
    parser.add_argument("--threads", type=int, default=1, help="of torch; small networks gain nothing from more than 1")
    parser.add_class_arguments(scenario, None, skip={"tasks"})
    parser.add_argument("--tasks", type=str, help="comma-separated names or ids, in the order of training (default: all)")
    for name, strategy in STRATEGIES.items():
        parser.add_class_arguments(strategy, name, skip={"seed"})
        parser.set_defaults({f"{name}.{key}": value for key, value in scenario.strategy_settings.get(name, {}).items()})
    return parser


def _run(name: str, words: Sequence[str]) -> Callable[[], int]:
    scenario = find_scenario(name)
    args = _parser(scenario).parse_args([_underscored(word) for word in words])
    if args.threads < 1:
        raise ValueError(f"threads is {args.threads}, allowed: 1 or more")
    torch.set_num_threads(args.threads)
    names = check_strategies([part.strip() for part in args.strategies.split(",") if part.strip()])
    out = Path(args.out or f"runs/{scenario.name}/{'+'.join(names)}/{args.seed}")
    experiment = Experiment(_scenario(scenario, args), names, args.seed, out, _settings(args), args.overwrite)
    return partial(_go, experiment, out)


def _go(experiment: Experiment, out: Path) -> int:
    console, title = Console(), f"{experiment.scenario.name} {'+'.join(experiment.names)}"
    for note in experiment.learner.notes:
        console.print(f"note: {note}", highlight=False, markup=False)
    try:
        with ProgressBar(title, console) as progress, warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: console.print(f"note: {message}", highlight=False, markup=False)
            result = experiment.run([progress])
    except NotFiniteError as error:
        return _fail(f"{error}; the run stopped, what it has logged is in {out}")
    except OSError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        _fail(f"interrupted at step {experiment.learner.steps}; what it has logged is in {out}")
        return INTERRUPTED
    print_scores({f"{title}, seed {experiment.seed}": result}, console)
    console.print(f"{out / 'result.json'}    watch: tensorboard --logdir {out}", highlight=False, soft_wrap=True)
    return 0


def _underscored(word: str) -> str:
    """Options are Python names; let people write them with dashes."""
    option, equals, value = word.partition("=")
    return option[:2] + option[2:].replace("-", "_") + equals + value if word.startswith("--") else word


def _scenario(scenario: type[Scenario], args: Namespace) -> Scenario:
    tasks = None if args.tasks is None else [part.strip() for part in args.tasks.split(",") if part.strip()]
    settings = {field.name: args[field.name] for field in fields(scenario) if field.name != "tasks"}
    for name, value in settings.items():
        if isinstance(value, Namespace):  # options of options, such as --training.rate
            settings[name] = get_type_hints(scenario)[name](**value.as_dict())
    return scenario(tasks=tasks, **settings)


def _settings(args: Namespace) -> dict[str, dict[str, Any]]:
    """Settings of all strategies, checked whether they are used or not."""
    settings = {name: args[name].as_dict() if name in args else {} for name in STRATEGIES}
    for name, strategy in STRATEGIES.items():
        strategy(**settings[name])
    return settings


def _list() -> int:
    console = Console()
    worlds = {name: _first_line(gym.spec(name).entry_point) for name in sorted(gym.registry) if name.startswith("everloop/")}
    special = {PLAIN: "plain fine-tuning, the lower bound", JOINT: "all tasks at once, the upper bound"}
    for title, rows in (
        ("scenarios", {name: scenario.summary + _needs(scenario) for name, scenario in SCENARIOS.items()}),
        ("strategies", special | {name: _first_line(strategy) for name, strategy in STRATEGIES.items()}),
        ("worlds", worlds),
    ):
        table = Table(title=title, title_justify="left", show_header=False, box=None)
        for name, text in rows.items():
            table.add_row(name, escape(text))
        console.print(table, "", highlight=False)
    return 0


def _needs(scenario: type[Scenario]) -> str:
    return f"\nneeds {scenario.needs}" if scenario.needs else ""


def _first_line(thing: Any) -> str:
    """The first line of the docstring of an object's module, which says what it is."""
    module = thing.partition(":")[0] if isinstance(thing, str) else thing.__module__
    return (import_module(module).__doc__ or "").strip().splitlines()[0]
