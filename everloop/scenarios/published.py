"""Published tables: their rows, and the files that they are read from."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import yaml

from everloop.loop import Result
from everloop.scenarios.names import did_you_mean

TABLES = Path(__file__).parent / "tables"

METRICS = {
    "final accuracy": "average_score",
    "online accuracy": "online_accuracy",
    "BWT": "backward_transfer",
    "one-step BWT": "one_step_backward_transfer",
    "average return": "online_return",
}
"""Name of a metric in a published table -> name of the measure in a `Result`."""


@dataclass(frozen=True)
class Row:
    """One published number and how to reproduce it.

    Args:
        method: Name of the method.
        column: Column of the published table, such as class.
        run: Words after `everloop run`; {seed} in them stands for the run's seed. Rows with the
            same words share their runs.
        metric: What the number is, a key of `METRICS`. Accuracies are in %, BWT in points.
        published: The published number; None if there is none.
        standing: Where the published number comes from.
        search: How the settings were chosen.
        machine: Where it was run, if not on the table's machine.
        exact: If True, a number above the published one is as wrong as one below it, as for a lower
            bound.

    Raises:
        ValueError: If the metric is unknown.
    """

    method: str
    column: str
    run: str
    metric: str = "final accuracy"
    published: float | None = None
    standing: str = ""
    search: str = ""
    machine: str = ""
    exact: bool = False

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            hint = (
                did_you_mean(str(self.metric), METRICS) or f" Choose one of {', '.join(METRICS)}."
            )
            raise ValueError(f"metric of row {self.method!r} is {self.metric!r}.{hint}")

    @property
    def label(self) -> str:
        """The method and the column, as the name of the row."""
        return f"{self.method}, {self.column}"

    def value(self, result: Result) -> float:
        """Return the row's number in a complete run.

        Raises:
            ValueError: If the run does not have it, with the reason.
        """
        measure = METRICS[self.metric]
        value = result.measures()[measure]
        if value is None:
            raise ValueError(
                f"{self.label}: the run has no {self.metric}: {result.reasons()[measure]}"
            )
        return value


@dataclass(frozen=True)
class Table:
    """A published table.

    Args:
        name: Name of the table's file, without its suffix.
        title: Title of the table.
        source: The publication.
        common: Words after `everloop run` that all rows share.
        seeds: Seeds to run for each row.
        rows: The rows.
        points: Tolerance in the unit of the numbers.
        notes: Remarks for the report.
        machine: Where the rows are run.
    """

    name: str
    title: str
    source: str
    common: str
    seeds: Sequence[int]
    rows: Sequence[Row]
    points: float = 1.5
    notes: str = ""
    machine: str = field(
        default_factory=lambda: f"{platform.machine()}, {os.cpu_count()} cores, no GPU"
    )


def tables() -> dict[str, str]:
    """Return name -> title of the tables that come with everloop."""
    return {path.stem: load_table(path.stem).title for path in sorted(TABLES.glob("*.yaml"))}


def load_table(name: str) -> Table:
    """Return the built-in table called `name`, or the one at a path that ends in .yaml or .yml.

    Raises:
        ValueError: In one line, if there is no such table or the file is not a table.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else TABLES / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in TABLES.glob("*.yaml"))) or f"none in {TABLES}"
        hint = did_you_mean(name, known.split(", "))
        raise ValueError(
            f"unknown table {name!r}."
            f"{hint or f' Choose one of {known}, or the path of a YAML file.'}"
        )
    try:
        data = yaml.safe_load(path.read_text())
        rows = [Row(**row) for row in data.pop("rows")]
        return Table(name=path.stem, rows=rows, **data)
    except ValueError as error:
        raise ValueError(f"table {path}: {error}") from None
    except (TypeError, KeyError, AttributeError, yaml.YAMLError) as error:
        known = ", ".join(f.name for f in fields(Row))
        raise ValueError(
            f"table {path} can't be read: {' '.join(str(error).split())}; its rows may have {known}"
        ) from None
