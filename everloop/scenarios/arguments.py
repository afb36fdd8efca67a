"""From the flags and YAML files of `everloop run` to an experiment."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from everloop.scenarios import SCENARIOS
from everloop.scenarios.experiment import Experiment
from everloop.scenarios.guards import NAMES, Guards
from everloop.scenarios.names import (
    Factory,
    factories,
    find_object,
    find_optimizer,
    first_required,
    from_registry,
    import_module,
    is_path,
)
from everloop.scenarios.scenario import Scenario
from everloop.scenarios.settings import (
    Given,
    Schema,
    Setting,
    check,
    check_values,
    convert,
    read_words,
    read_yaml,
    schema_of,
    with_files,
)
from everloop.scenarios.strategies import (
    PLAIN,
    check_strategies,
    find_strategy,
    is_strategy,
    known_methods,
    make_strategy,
    strategy_key,
)

FLAGS = ("overwrite", "quiet", "json", "help", "print_config", "restore_best")
"""Flags that take no value."""


def _settings(*entries: tuple[str, Any, Any, str]) -> Schema:
    return {entry[0]: Setting(*entry) for entry in entries}


GENERAL = _settings(
    (
        "strategies",
        list[str],
        [PLAIN],
        "Strategies in their order of application, separated by commas. none is plain "
        "fine-tuning, joint trains on all tasks at once, and package.module:Class is a strategy of "
        "your own. A semicolon separates sets; each set is a run of its own.",
    ),
    ("seed", int, 0, "Seed for networks, worlds and strategies, 0 or more."),
    (
        "threads",
        int,
        1,
        "CPU threads for torch, 1 to 1024. More than 1 does not speed up small networks.",
    ),
    (
        "import",
        list[str],
        [],
        "Python modules to import first, separated by commas. They may register environments, "
        "scenarios and strategies.",
    ),
    (
        "init_from",
        str | None,
        None,
        "Start with the weights of another run: its folder, or a safetensors file. Names and "
        "shapes must fit; the last layer of a classifier may have more outputs. By default "
        "weights are random.",
    ),
) | schema_of(Guards)
WHERE = _settings(
    (
        "config",
        str | None,
        None,
        "YAML file with settings, such as the config.yaml of an earlier run. Flags override it.",
    ),
    (
        "out",
        str | None,
        None,
        "Folder for the run. By default runs/SCENARIO/STRATEGIES-HASH/SEED, where HASH stands for "
        "all settings but the seed.",
    ),
    (
        "overwrite",
        bool,
        False,
        "Replace any run that the folder holds. Without it, a complete run with the same settings "
        "is kept, and a run with other settings is an error.",
    ),
    (
        "seeds",
        str | None,
        None,
        "Several seeds, such as 0-4 or 0,3,7; each is a run of its own. Not together with --seed.",
    ),
    (
        "checkpoint_every",
        int | None,
        None,
        "World steps between two checkpoints, or 0 for none but the last; the ends of tasks are "
        "saved too. By default every five minutes and at the ends of tasks, in at most 2 % of the "
        "time.",
    ),
    (
        "keep_best",
        str | None,
        None,
        "Measure, such as average_score, at whose best value a checkpoint is kept beside the last "
        "two. Only evaluations of the last task in training are compared.",
    ),
    ("jobs", int, 1, "Number of runs at the same time, 1 to 1024."),
    ("quiet", bool, False, "Print errors only, and the result if --json is given."),
    (
        "json",
        bool,
        False,
        "Print the result as a JSON object, or as a list of them for several runs. Progress then "
        "goes to the standard error output.",
    ),
    (
        "print_config",
        bool,
        False,
        "Print all settings as a YAML file with comments, without running anything.",
    ),
)


@dataclass
class Request:
    """The checked content of one `everloop run` command.

    Args:
        scenario: The scenario's class.
        strategies: The sets of strategies; each set is a run of its own.
        values: The value of every setting by its key, given or default.
        given: The keys of the settings that were given.
        flags: The flags of the command line by key, as text.
        schema: The settings of the scenario.
        groups: Strategy -> its settings, for every strategy, chosen or not.
    """

    scenario: type[Scenario]
    strategies: list[list[str]]
    values: dict[str, Any]
    given: set[str]
    flags: Given
    schema: Schema
    groups: dict[str, Schema]

    def experiment(self, names: Sequence[str], seed: int, out: Path | None) -> Experiment:
        """Return the experiment with the strategies `names`.

        Args:
            names: Strategies in their order of application.
            seed: Seed of the run, 0 or more.
            out: Folder for the run; None writes nothing.

        Raises:
            ValueError: In one line, if a setting is out of range.
        """
        settings = {
            key: given_settings(schema, self.values, self.given)
            for key, schema in self.groups.items()
        }
        return Experiment(
            build(self.scenario, self.values, self.given),
            names,
            seed,
            out,
            settings,
            self.values["overwrite"],
            self.values["import"],
            self.values["checkpoint_every"],
            self.values["keep_best"],
            self.values["init_from"],
            **{name: self.values[name] for name in NAMES},
        )

    @property
    def seeds(self) -> list[int]:
        """The seeds to run, from --seeds or --seed."""
        return (
            [self.values["seed"]]
            if self.values["seeds"] is None
            else read_seeds(self.values["seeds"])
        )

    def notes(self, scenario: Scenario) -> list[str]:
        """Return one line for each given setting that has no effect."""
        chosen = {strategy_key(name) for names in self.strategies for name in names}
        said = []
        for key in sorted(self.given):
            group = key.partition(".")[0]
            if group in self.groups and group not in chosen:
                said.append(f"{key} has no effect without --strategies {group}")
        for key, why in scenario.without_effect().items():
            if key in self.given and self.values[key] != self.schema[key].default:
                said.append(f"{key} has no effect: {why}")
        return said


def read(words: Sequence[str]) -> Request:
    """Return the request in the words that follow `everloop run`.

    Raises:
        ValueError: In one line, for an unknown name, a value of the wrong type or out of range.
    """
    positional, flags = read_words(words, FLAGS)
    check_values(flags, GENERAL | WHERE)
    if {"seed", "seeds"} <= set(flags):
        raise ValueError("--seed and --seeds exclude each other; give only one of them")
    if len(positional) > 1:
        if "strategies" in flags and all(map(is_strategy, positional[1:])):
            together = ",".join([flags["strategies"], *positional[1:]])
            raise ValueError(
                f"unexpected {positional[1]!r}; separate strategies by commas: {together}"
            )
        raise ValueError(
            f"{positional[1]!r} is not expected after {positional[0]!r}; settings are written "
            "--key value"
        )
    config = flags.get("config")
    given = {**(read_yaml(config) if config is not None else {}), **flags}
    name = positional[0] if positional else given.get("scenario")
    if not isinstance(name, str):
        raise ValueError(
            f"no scenario is named; write everloop run SCENARIO with one of {', '.join(SCENARIOS)}"
        )
    given.pop("scenario", None)
    for module in convert(GENERAL["import"], given.get("import", [])):
        import_module(module)
    scenario = find_scenario(name)
    strategies = _strategy_sets(given)
    schema, groups = scenario_schema(scenario), strategy_schemas(scenario, strategies)
    everything = (
        GENERAL
        | WHERE
        | schema
        | {key: setting for group in groups.values() for key, setting in group.items()}
    )
    given = with_files(given, everything)
    schema |= (inside := factory_settings(scenario, given))
    everything |= inside
    check_values(flags, everything)
    chosen = [
        key for names in strategies for name in names for key in groups.get(strategy_key(name), ())
    ]
    values = {key: setting.default for key, setting in everything.items()}
    values |= check(given, everything, [*schema, *chosen, *GENERAL, *WHERE])
    _check_numbers(values)
    _check_unused(groups, strategies, values, set(given))
    return Request(scenario, strategies, values, set(given), flags, schema, groups)


def _strategy_sets(given: Given) -> list[list[str]]:
    """Remove the strategies from `given` and return them as sets."""
    value = given.get("strategies", PLAIN)
    sets = value.split(";") if isinstance(value, str) else [value]
    names = [check_strategies(convert(GENERAL["strategies"], part)) for part in sets]
    given.pop("strategies", None)
    return names


def _check_numbers(values: Mapping[str, Any]) -> None:
    for name in ("threads", "jobs"):
        if not 1 <= values[name] <= 1024:
            raise ValueError(f"{name} is {values[name]}; it must be 1 to 1024")


def given_settings(
    schema: Schema, values: Mapping[str, Any], given: Collection[str]
) -> dict[str, Any]:
    """Return the given settings of one strategy by parameter name; a seed of None is left out."""
    found = {key.partition(".")[2]: values[key] for key in schema if key in given}
    return {name: value for name, value in found.items() if name != "seed" or value is not None}


def _check_unused(
    groups: Mapping[str, Schema],
    sets: Sequence[Sequence[str]],
    values: Mapping[str, Any],
    given: Collection[str],
) -> None:
    """Raise ValueError for settings out of range, also of strategies that are not chosen."""
    chosen = {strategy_key(name) for names in sets for name in names}
    for key, schema in groups.items():
        if key not in chosen and any(setting in given for setting in schema):
            make_strategy(key, given_settings(schema, values, given))


def read_seeds(text: str) -> list[int]:
    """Return the seeds in a text such as "0-4", "3" or "0,2,5-7".

    Raises:
        ValueError: For any other text, no seed, a seed named twice, or more than 10,000 seeds.
    """
    seeds: list[int] = []
    try:
        for part in text.split(","):
            first, dash, last = part.strip().partition("-")
            seeds += range(int(first), int(last) + 1) if dash else [int(first)]
    except ValueError:
        raise ValueError(f"seeds is {text!r}; write them as 0-4 or 0,3,7") from None
    if not seeds or len(set(seeds)) < len(seeds) or len(seeds) > 10_000:
        wrong = "no seed" if not seeds else "a seed twice, or more than 10,000 seeds"
        raise ValueError(f"seeds is {text!r}, which names {wrong}; write them as 0-4 or 0,3,7")
    return seeds


def find_scenario(name: str) -> type[Scenario]:
    """Return the scenario class that is registered as `name`, or at "package.module:Class".

    Raises:
        ValueError: If there is none, or a field of it has the name of a setting of every run.
    """
    if not is_path(name):
        registered: type[Scenario] = from_registry(
            "scenario", name, SCENARIOS, ", or package.module:Class"
        )
        return registered
    found = find_object(name)
    if not (
        inspect.isclass(found)
        and issubclass(found, Scenario)
        and hasattr(found, "name")
        and hasattr(found, "summary")
    ):
        raise ValueError(
            f"scenario {name!r} is {found!r}; it must be a subclass of everloop.scenarios.Scenario "
            "with a name and a summary"
        )
    taken = {field.name for field in fields(found)} & {
        *GENERAL,
        *WHERE,
        *known_methods(),
        "scenario",
    }
    if taken:
        raise ValueError(
            f"scenario {name!r} has a field {min(taken)!r}, which is a setting of every run; "
            "rename the field"
        )
    return found


def scenario_schema(scenario: type[Scenario]) -> Schema:
    """Return the settings of a scenario."""
    return schema_of(scenario)


def strategy_schemas(
    scenario: type[Scenario], sets: Sequence[Sequence[str]] = ()
) -> dict[str, Schema]:
    """Return strategy -> settings, with the scenario's defaults.

    Args:
        scenario: The scenario's class.
        sets: Sets of strategy names. Their paths, "package.module:Class", are added to the
            registered strategies.
    """
    own = {strategy_key(name): name for names in sets for name in names if is_path(name)}
    found = {}
    for key, name in {**{name: name for name in known_methods()}, **own}.items():
        schema = schema_of(
            find_strategy(name), f"{key}.", defaults=scenario.strategy_settings.get(key, {})
        )
        if f"{key}.seed" in schema:
            schema[f"{key}.seed"] = Setting(
                f"{key}.seed",
                int | None,
                None,
                "Seed for the strategy's own random draws. By default the run's seed.",
            )
        found[key] = schema
    return found


def factory_settings(scenario: type[Scenario], given: Given) -> Schema:
    """Return the settings of the classes that a scenario makes, such as `optimizer.weight_decay`.

    Args:
        scenario: The scenario's class.
        given: The given settings; they may name a class in place of the default.

    Raises:
        ValueError: If a class can't be found.
    """
    found: Schema = {}
    for name in factories(scenario):
        default = next(field.default for field in fields(scenario) if field.name == name)
        path = given.get(name, default)
        if isinstance(path, Factory):
            path = path.path
        if path is None or path in ("null", "none"):
            continue
        if not isinstance(path, str):
            raise ValueError(f"{name} is {path!r}; it must be a name, or package.module:Class")
        what = find_object(find_optimizer(path) if name == "optimizer" else path)
        found |= schema_of(
            what,
            f"{name}.",
            skip={first_required(what) or "", *(("lr",) if name == "optimizer" else ())},
        )
        if any(
            parameter.kind is parameter.VAR_KEYWORD
            for parameter in inspect.signature(what).parameters.values()
        ):
            found |= {
                key: Setting(key, Any, None, "")
                for key in given
                if key.startswith(f"{name}.") and key not in found
            }
    return found


def build(scenario: type[Scenario], values: Mapping[str, Any], given: Collection[str]) -> Scenario:
    """Return the scenario with these settings.

    Args:
        scenario: The scenario's class.
        values: The value of every setting by its key.
        given: The keys that were given; the classes that the scenario makes get only these.

    Raises:
        ValueError: In one line, if a value is out of range.
    """
    arguments: dict[str, Any] = {}
    hints = get_type_hints(scenario)
    for field in fields(scenario):
        kind = hints[field.name]
        if field.name in factories(scenario):
            arguments[field.name] = _factory(field.name, values, given)
        elif inspect.isclass(kind) and is_dataclass(kind):
            arguments[field.name] = _grouped(kind, f"{field.name}.", values)
        else:
            arguments[field.name] = values[field.name]
    return scenario(**arguments)


def _factory(name: str, values: Mapping[str, Any], given: Collection[str]) -> Factory | None:
    what = values[name]
    if what is None:
        return None
    inside = {
        key.partition(".")[2]: values[key] for key in sorted(given) if key.startswith(f"{name}.")
    }
    return Factory(what.path if isinstance(what, Factory) else what, inside)


def _grouped(kind: Callable[..., Any], prefix: str, values: Mapping[str, Any]) -> Any:
    inside = {
        key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)
    }
    try:
        return kind(**inside)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{prefix.rstrip('.')}: {error}") from None
