"""Runs beside each other: `everloop compare FOLDER...`."""

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
from everloop.loop.result import MEASURES
from everloop.scenarios.folder import CONFIG, RESULT
from everloop.scenarios.settings import flat
from everloop.scenarios.statistics import Estimate, estimate, paired


@dataclass(frozen=True)
class Compare:
    """What `everloop compare` is asked for.

    Args:
        baseline: The row that the others are compared with; by default none if there is such a row, else the first.
        csv: A file for all measures of all rows.
        latex: A file for the table, in LaTeX.
        figure: A file for a picture: .pdf, .png or .svg.
    """

    baseline: str | None = None
    csv: Path | None = None
    latex: Path | None = None
    figure: Path | None = None


@dataclass
class Group:
    """Runs of the same settings, which differ in their seeds.

    Args:
        label: What they are called in a table.
        settings: Every setting but the seed, by dotted key.
        results: By seed.
    """

    label: str
    settings: Mapping[str, Any]
    results: dict[int, Result]

    def values(self, measure: str) -> dict[int, float]:
        """A measure by seed, of the seeds that have it."""
        found = {seed: getattr(result, measure) for seed, result in sorted(self.results.items())}
        return {seed: value for seed, value in found.items() if value is not None and math.isfinite(value)}


@dataclass
class Comparison:
    """Groups that can be compared: of one scenario, with the same tasks and the same metric.

    Args:
        scenario: Its name.
        metric: What the numbers are.
        groups: The rows.
        baseline: The row that the others are compared with.
    """

    scenario: str
    metric: Metric
    groups: list[Group]
    baseline: Group

    def estimate(self, group: Group, measure: str) -> Estimate:
        """A measure's mean over the group's seeds."""
        return estimate(list(group.values(measure).values()))

    def difference(self, group: Group, measure: str = "average_score") -> Estimate | None:
        """The group's measure minus the baseline's, paired by seed; None of the baseline itself."""
        if group is self.baseline:
            return None
        return paired(group.values(measure), self.baseline.values(measure))


@dataclass
class Comparisons:
    """One comparison for each scenario, and what could not be compared.

    Args:
        tables: The comparisons.
        notes: One line for each folder that is left out, for measures that seeds lack, and for a table
            without the baseline that was asked for.
    """

    tables: list[Comparison]
    notes: list[str] = field(default_factory=list)


def compare(folders: Iterable[Path | str], baseline: str | None = None) -> Comparisons:
    """The runs in `folders`, and in all folders below them, beside each other.

    Raises:
        ValueError: In one line, where nothing can be compared, and for a baseline that is no row.
    """
    groups, notes = _load(folders)
    if not groups:
        raise ValueError(f"there is no complete run to compare{'; ' + '; '.join(notes) if notes else ''}")
    together: dict[str, list[Group]] = {}
    for group in groups:
        result = next(iter(group.results.values()))
        together.setdefault(json.dumps([result.scenario, result.tasks, result.metric.name, result.metric.unit]), []).append(group)
    tables = [_comparison(together[kind], baseline) for kind in sorted(together)]
    known = [group.label for groups in together.values() for group in groups]
    if baseline is not None and baseline not in known:
        raise ValueError(f"baseline is {baseline!r}; the rows are {', '.join(known)}")
    for table in tables:
        notes += [note for group in table.groups for note in _missing(group)]
        if baseline is not None and table.baseline.label != baseline:
            notes.append(f"{table.scenario} has no row {baseline!r}; its baseline is {table.baseline.label!r}")
    return Comparisons(tables, notes)


def _missing(group: Group) -> list[str]:
    """One line for each set of seeds that lack measures, which are then averaged without them."""
    lacking: dict[tuple[int, ...], list[str]] = {}
    for measure in MEASURES:
        seeds = tuple(sorted(group.results.keys() - group.values(measure).keys()))
        if seeds:
            lacking.setdefault(seeds, []).append(measure)
    scenario = next(iter(group.results.values())).scenario
    return [
        f"{scenario}, {group.label}: not known for seed {', '.join(map(str, seeds))}: {', '.join(measures)}"
        for seeds, measures in lacking.items()
    ]


def _load(folders: Iterable[Path | str]) -> tuple[list[Group], list[str]]:
    """Complete runs by their settings, and why others are left out."""
    groups: dict[str, Group] = {}
    notes: list[str] = []
    for folder in _runs(folders, notes):
        try:
            result, settings = Result.load(folder), _settings(folder)
        except ValueError as error:
            notes.append(f"not compared: {folder}: {error}")
            continue
        if not result.complete:
            notes.append(f"not compared: {folder}: {len(result.rows)} of {len(result.phases)} phases have ended")
            continue
        settings = settings or {"scenario": result.scenario, "strategies": result.strategies, "phases": result.phases}
        kind = [result.scenario, result.tasks, result.metric.name, result.metric.unit]
        key = json.dumps([kind, settings], sort_keys=True, default=str)
        group = groups.setdefault(key, Group("+".join(result.strategies), settings, {}))
        if result.seed in group.results:
            notes.append(f"not compared: {folder}: seed {result.seed} of these settings is there already")
            continue
        group.results[result.seed] = result
    return list(groups.values()), notes


def _runs(folders: Iterable[Path | str], notes: list[str]) -> list[Path]:
    """The folders of runs in and below `folders`, each once, by name: of two runs of one seed the first counts."""
    found: list[Path] = []
    for folder in sorted(map(Path, folders)):
        if not folder.is_dir():
            raise ValueError(f"{folder} is no folder")
        inside = sorted(path.parent for path in folder.rglob(RESULT))
        if not inside:
            notes.append(f"not compared: {folder}: it holds no {RESULT}")
        found += inside
    return sorted({path.resolve() for path in found})


def _settings(folder: Path) -> dict[str, Any]:
    """The run's settings by dotted key, but for seeds and threads; none where they are not written down."""
    file = folder / CONFIG
    if not file.exists():
        return {}
    try:
        content = yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"{CONFIG} can't be read: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{CONFIG} holds no settings")
    return {key: value for key, value in flat(content).items() if key not in ("seed", "threads") and not key.endswith(".seed")}


def _comparison(groups: list[Group], baseline: str | None) -> Comparison:
    _name(groups)
    first = {id(group): next(iter(group.results.values())) for group in groups}
    groups.sort(
        key=lambda group: (first[id(group)].strategies != ["none"], first[id(group)].strategies == ["joint"], _by_number(group.label))
    )
    result = first[id(groups[0])]
    chosen = next((group for group in groups if group.label == baseline), groups[0])
    return Comparison(result.scenario, result.metric, groups, chosen)


def _by_number(label: str) -> list[str | float]:
    """A key that sorts strength=2.0 before strength=10.0."""
    return [float(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)", label))]


def _name(groups: Sequence[Group]) -> None:
    """Where rows would be called the same, say in which settings they differ."""
    for label in {group.label for group in groups}:
        alike = [group for group in groups if group.label == label]
        keys = sorted({key for group in alike for key in group.settings})
        differ = [key for key in keys if len({repr(group.settings.get(key)) for group in alike}) > 1]
        for group in alike if len(alike) > 1 else []:
            group.label = ", ".join([label, *(f"{key}={group.settings.get(key)}" for key in differ)])
