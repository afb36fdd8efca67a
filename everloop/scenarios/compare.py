"""`everloop compare FOLDER...`: tables of runs, with means over seeds and paired differences."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from everloop.contract import Metric
from everloop.loop import Result
from everloop.scenarios import SCENARIOS
from everloop.scenarios.arguments import scenario_schema, strategy_schemas
from everloop.scenarios.folder import CONFIG, RESULT
from everloop.scenarios.help import shown
from everloop.scenarios.settings import flat, plain
from everloop.scenarios.statistics import Estimate, estimate, paired

COLUMNS = ("average_score", "forgetting", "average_incremental_score")
"""The measures shown in a table."""


@dataclass(frozen=True)
class Compare:
    """The settings of `everloop compare`.

    Args:
        baseline: Row with which the others are compared, given by its label or its strategies. By
            default the row "none" (plain fine-tuning) if there is one, else the first row.
        json: Print a JSON object with all measures of all rows instead of tables.
        csv: File for all measures of all rows, as CSV; - prints them instead of tables.
        latex: File for the tables, in LaTeX.
        figure: File for a figure of the results and learning curves: .pdf, .png or .svg.
    """

    baseline: str | None = None
    json: bool = False
    csv: Path | None = None
    latex: Path | None = None
    figure: Path | None = None


@dataclass
class Group:
    """Runs with the same settings and different seeds: one row of a table.

    Args:
        name: The strategies of the runs, joined by "+".
        settings: Every setting but seeds and threads, by dotted key.
        results: Seed -> result.
        label: Name of the row in a table: `name` and the settings in which it differs from other
            rows.
    """

    name: str
    settings: Mapping[str, Any]
    results: dict[int, Result] = field(default_factory=dict)
    label: str = ""

    @property
    def first(self) -> Result:
        """One of the results, for facts that all of them share."""
        return next(iter(self.results.values()))

    @property
    def strategy_settings(self) -> dict[str, Any]:
        """The names of the strategies and their settings."""
        mine = {"strategies", *self.first.strategies}
        return {key: value for key, value in self.settings.items() if key.partition(".")[0] in mine}

    @property
    def scenario_settings(self) -> dict[str, Any]:
        """All other settings; runs whose strategies are compared should share them."""
        return {
            key: value for key, value in self.settings.items() if key not in self.strategy_settings
        }

    def values(self, measure: str) -> dict[int, float]:
        """Return seed -> value of a measure, without seeds where it is unknown."""
        found = {seed: getattr(result, measure) for seed, result in sorted(self.results.items())}
        return {
            seed: value
            for seed, value in found.items()
            if value is not None and math.isfinite(value)
        }


@dataclass
class Comparison:
    """A table: groups with the same scenario, scenario type, tasks and metric.

    Args:
        scenario: Name of the scenario.
        scenario_type: class, domain or task; empty if the scenario has no types.
        metric: The metric of all numbers.
        groups: The rows.
        baseline: The row with which the others are compared.
        remarks: Facts that a reader of the differences needs, one line each.
    """

    scenario: str
    scenario_type: str
    metric: Metric
    groups: list[Group]
    baseline: Group
    remarks: list[str]

    @property
    def title(self) -> str:
        """The scenario and its type as readable text."""
        return (
            f"{self.scenario} ({self.scenario_type}-incremental)"
            if self.scenario_type
            else self.scenario
        )

    def estimate(self, group: Group, measure: str) -> Estimate:
        """Return the mean of a measure over the group's seeds, with its interval."""
        return estimate(list(group.values(measure).values()))

    def difference(self, group: Group, measure: str = "average_score") -> Estimate | None:
        """Return the mean difference from the baseline, paired by seed; None for the baseline."""
        if group is self.baseline:
            return None
        return paired(group.values(measure), self.baseline.values(measure))


@dataclass
class Comparisons:
    """All tables of a comparison, and notes about what is missing from them.

    Args:
        tables: One comparison for each scenario and scenario type.
        notes: One line for each folder that is left out, for measures that some seeds lack, and for
            each table without the requested baseline.
    """

    tables: list[Comparison]
    notes: list[str] = field(default_factory=list)


def compare(
    folders: Iterable[Path | str], baseline: str | None = None, measures: Sequence[str] = COLUMNS
) -> Comparisons:
    """Compare the runs in `folders` and in all folders below them.

    Args:
        folders: Folders that are searched for runs.
        baseline: The label or the strategies of the row with which the others are compared.
        measures: The measures that will be shown; a note names those that some seeds lack.

    Raises:
        ValueError: In one line, if a folder does not exist, no run is complete, or no row is the
            baseline.
    """
    groups, notes = _load(folders)
    if not groups:
        raise ValueError(f"no complete run was found{'; ' + '; '.join(notes) if notes else ''}")
    together: dict[str, list[Group]] = {}
    for group in groups:
        together.setdefault(json.dumps(_kind(group)), []).append(group)
    tables = [_comparison(together[kind], baseline) for kind in sorted(together)]
    rows = [group for table in tables for group in table.groups]
    if baseline is not None and not any(baseline in (row.label, row.name) for row in rows):
        raise ValueError(
            f"baseline is {baseline!r}; choose one of {_some([repr(row.label) for row in rows])}"
        )
    for table in tables:
        notes += _missing(table, measures)
        if baseline is not None and baseline not in (table.baseline.label, table.baseline.name):
            notes.append(
                f"{table.title} has no row {baseline!r}; {table.baseline.label!r} is its baseline"
            )
    return Comparisons(tables, notes)


def _kind(group: Group) -> list[Any]:
    """Return what all rows of one table share."""
    metric = group.first.metric
    return [
        group.first.scenario,
        group.settings.get("scenario_type") or "",
        group.first.tasks,
        metric.name,
        metric.unit,
    ]


def _some(words: Sequence[str], most: int = 8) -> str:
    """Return the first `most` words, separated by commas, and the number of the others."""
    more = [f"{len(words) - most} more"] if len(words) > most else []
    return ", ".join([*words[:most], *more])


def _missing(table: Comparison, measures: Sequence[str]) -> list[str]:
    """Return at most two lines: measures that some seeds lack, and how to get forward transfer."""
    said, unknown = [], False
    for measure in measures:
        for group in table.groups:
            lacking = sorted(group.results.keys() - group.values(measure).keys())
            unknown |= (
                measure == "forward_transfer"
                and measure in group.first.applicable
                and bool(lacking)
                and len(group.first.phases) > 1
            )
            if 0 < len(lacking) < len(group.results):
                said.append(
                    f"{measure.replace('_', ' ')} of {group.label} (seed "
                    f"{', '.join(map(str, lacking))})"
                )
    lines = [f"{table.title}: unknown: {'; '.join(said)}"] if said else []
    return [
        *lines,
        *([f"{table.title}: forward transfer needs --eval-tasks all"] if unknown else []),
    ]


def _load(folders: Iterable[Path | str]) -> tuple[list[Group], list[str]]:
    """Return the complete runs, grouped by their settings, and why others are left out."""
    groups: dict[str, Group] = {}
    notes: list[str] = []
    for folder in _runs(folders, notes):
        try:
            result, settings = Result.load(folder), _settings(folder)
        except ValueError as error:
            notes.append(f"not compared: {folder}: {error}")
            continue
        if not result.complete:
            notes.append(
                f"not compared: {folder}: unfinished, {len(result.rows)} of {len(result.phases)} "
                "phases are done"
            )
            continue
        kind = [result.scenario, result.tasks, result.metric.name, result.metric.unit]
        key = json.dumps([kind, settings], sort_keys=True, default=str)
        group = groups.setdefault(key, Group("+".join(result.strategies), settings))
        if result.seed in group.results:
            notes.append(
                f"not compared: {folder}: another run has the same settings and seed {result.seed}"
            )
            continue
        group.results[result.seed] = result
    return list(groups.values()), notes


def _runs(folders: Iterable[Path | str], notes: list[str]) -> list[Path]:
    """Return the folders of all runs in and below `folders`, each once, sorted by name."""
    found: list[Path] = []
    for folder in sorted(map(Path, folders)):
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder; name folders that hold runs")
        inside = sorted(path.parent for path in folder.rglob(RESULT))
        if not inside:
            notes.append(f"not compared: {folder}: it contains no {RESULT}")
        found += inside
    return sorted({path.resolve() for path in found})


def _settings(folder: Path) -> dict[str, Any]:
    """Return the run's settings by dotted key, without seeds and threads.

    Raises:
        ValueError: If config.yaml is missing or can't be read.
    """
    file = folder / CONFIG
    if not file.exists():
        raise ValueError(f"no {CONFIG}")
    try:
        content = yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"{CONFIG} can't be read: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{CONFIG} contains no settings")
    return {
        key: value
        for key, value in flat(content).items()
        if key not in ("seed", "threads") and not key.endswith(".seed")
    }


def _comparison(groups: list[Group], baseline: str | None) -> Comparison:
    keys = _differing([group.scenario_settings for group in groups])
    _label(groups, keys)
    groups.sort(
        key=lambda group: (group.name != "none", group.name == "joint", _by_number(group.label))
    )
    asked = [group for group in groups if group.label == baseline]
    chosen = next(iter([*asked, *[group for group in groups if group.name == baseline], *groups]))
    alike = [group for group in groups if group.name == chosen.name]
    remarks = (
        [f"rows differ in more than their strategies: {_differences(groups, keys)}"] if keys else []
    )
    if len(alike) > 1 and not asked:
        remarks.append(
            f"the baseline is {chosen.label!r}, the first of {len(alike)} rows with strategies "
            f"{chosen.name}; choose another with --baseline LABEL"
        )
    if apart := [
        group.label for group in groups if not group.results.keys() & chosen.results.keys()
    ]:
        remarks.append(f"no seed in common with {chosen.label!r}: {'; '.join(apart)}")
    remarks += [
        line
        for line in (_amounts(groups, name) for name in ("steps", "updates", "presentations"))
        if line
    ]
    scenario, scenario_type, *_ = _kind(chosen)
    return Comparison(scenario, scenario_type, chosen.first.metric, groups, chosen, remarks)


def _amounts(groups: Sequence[Group], name: str) -> str:
    """Return which rows had how many steps, updates or presentations; empty if all had the same.

    The numbers are those of each row's first seed.
    """
    rows: dict[int, list[str]] = {}
    for group in groups:
        rows.setdefault(getattr(group.first, name), []).append(group.name)
    if len(rows) == 1:
        return ""
    parts = [f"{count:,} ({', '.join(dict.fromkeys(names))})" for count, names in rows.items()]
    return f"rows had different numbers of {name}: {_some(parts)}"


def _by_number(label: str) -> list[str | float]:
    """Return a sort key that puts strength=2.0 before strength=10.0."""
    return [
        float(part) if i % 2 else part
        for i, part in enumerate(re.split(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)", label))
    ]


def _differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the sorted keys whose values are not the same in all settings."""
    return sorted(
        key
        for key in set().union(*settings)
        if len({repr(values.get(key)) for values in settings}) > 1
    )


def _differences(groups: Sequence[Group], keys: Sequence[str]) -> str:
    """Return the values of each key with their rows, such as "iterations 5 (none), 20 (replay)"."""
    several = len({group.name for group in groups}) > 1
    said = []
    for key in keys:
        rows: dict[str, list[str]] = {}
        for group in groups:
            value = group.settings.get(key)
            rows.setdefault("unset" if value is None else shown(value), []).append(group.name)
        said.append(
            f"{key} "
            + _some(
                [
                    f"{value} ({', '.join(dict.fromkeys(names))})" if several else value
                    for value, names in rows.items()
                ]
            )
        )
    return "; ".join(said)


def _label(groups: Sequence[Group], keys: Sequence[str]) -> None:
    """Set the label of each group: its strategies, and settings that tell the rows apart.

    These settings are `keys` and those in which groups of the same strategies differ. Values at
    their defaults are left out, unless two labels would then be the same.
    """
    defaults = _defaults(groups[0].first.scenario)

    def label(group: Group, defaults: Mapping[str, Any]) -> str:
        own = _differing([other.strategy_settings for other in groups if other.name == group.name])
        named = [key for key in [*keys, *own] if key in group.settings]
        told = [key for key in named if key not in defaults or group.settings[key] != defaults[key]]
        return ", ".join([group.name, *(f"{key}={shown(group.settings[key])}" for key in told)])

    labels = [label(group, defaults) for group in groups]
    for group, short in zip(groups, labels, strict=True):
        group.label = short if labels.count(short) == 1 else label(group, {})


def _defaults(scenario: str) -> dict[str, Any]:
    """Return the defaults of a scenario and its strategies; empty if it is not registered."""
    if scenario not in SCENARIOS:
        return {}
    found = SCENARIOS[scenario]
    schemas = [scenario_schema(found), *strategy_schemas(found).values()]
    return {
        "scenario": scenario,
        **{key: plain(setting.default) for schema in schemas for key, setting in schema.items()},
    }
