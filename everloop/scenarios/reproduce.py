"""`everloop reproduce TABLE`: run the rows of a published table and report both numbers."""

from __future__ import annotations

import hashlib
import math
import shlex
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from everloop.loop import Result
from everloop.scenarios.folder import complete
from everloop.scenarios.jobs import run_all
from everloop.scenarios.published import Row, Table, load_table

REPORT = "report.md"


@dataclass(frozen=True)
class Reproduce:
    """The settings of `everloop reproduce`.

    Args:
        table: Name of a table, or the path of one in YAML.
        rows: Methods or columns to run, separated by commas. By default all of them.
        jobs: Number of runs at the same time, 1 or more; each uses one thread.
        out: Folder for the runs.
        report: Markdown file for the table. By default OUT/TABLE/report.md.
    """

    table: str
    rows: list[str] = field(default_factory=list)
    jobs: int = 1
    out: Path = Path("runs/reproduce")
    report: Path | None = None


def words_of(table: Table, row: Row) -> list[str]:
    """Return the words after `everloop run` for `row`, without the seed."""
    scenario, *own = shlex.split(row.run)
    return [scenario, *shlex.split(table.common), *own]


def folder_of(table: Table, row: Row, out: Path) -> Path:
    """Return the folder of the row's runs, which it shares with all rows of the same command."""
    words = words_of(table, row)
    first = next((other for other in table.rows if words_of(table, other) == words), row)
    key = hashlib.sha256(shlex.join(words).encode()).hexdigest()[:8]
    return (
        out
        / table.name
        / f"{first.column}-{first.method}-{key}".lower()
        .replace(" ", "-")
        .replace("+", "p")
        .replace("/", "-")
    )


def run_rows(
    table: Table, rows: Sequence[Row], out: Path, jobs: int, tell: Callable[[str], None]
) -> None:
    """Run every row and seed that is not complete in `out`; rows of the same command run once.

    Args:
        table: The table.
        rows: The rows to run.
        out: Folder for the runs.
        jobs: Number of runs at the same time, 1 or more; each uses one thread.
        tell: Called with a line of text for each row after each of its runs.

    Raises:
        ValueError: If a run fails, with its command and its error, or does not have a row's metric.
            The other runs are stopped.
    """
    shared: dict[Path, list[Row]] = {}
    for row in rows:
        shared.setdefault(folder_of(table, row, out), []).append(row)
    cells = [
        (folder / str(seed), seed)
        for seed in table.seeds
        for folder in shared
        if not complete(folder / str(seed))
    ]
    commands = [
        [
            *("run", *_seeded(words_of(table, shared[folder.parent][0]), str(seed))),
            *("--seed", str(seed), "--out", str(folder), "--overwrite", "--quiet"),
        ]
        for folder, seed in cells
    ]

    def ended(i: int, error: str | None) -> None:
        folder, seed = cells[i]
        if error is not None:
            raise ValueError(f"everloop {shlex.join(commands[i])}: {error}")
        for row in shared[folder.parent]:
            value = row.value(Result.load(folder))
            tell(f"{row.label}, seed {seed}: {row.metric} {value:.2f}")

    run_all(commands, jobs, ended)


def _seeded(words: Sequence[str], seed: str) -> list[str]:
    """Return the words of a row's command with the seed in its places."""
    return [word.replace("{seed}", seed) for word in words]


def numbers(table: Table, row: Row, out: Path) -> list[float]:
    """Return the row's numbers of the seeds with a complete run.

    Raises:
        ValueError: If a run does not have the row's metric.
    """
    folders = [folder_of(table, row, out) / str(seed) for seed in table.seeds]
    return [row.value(Result.load(folder)) for folder in folders if complete(folder)]


def verdict(row: Row, values: Sequence[float], points: float) -> str:
    """Return whether our mean agrees with the published number.

    It passes if it is within max(points, 2 standard errors), or above and the row is not exact.

    Args:
        row: The published number.
        values: Our numbers by seed, in the row's unit.
        points: Tolerance in that unit.
    """
    if row.published is None:
        return "-"
    if not values:
        return "not yet run"
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    off = statistics.mean(values) - row.published
    close = abs(off) <= max(points, 2 * error)
    return "pass" if close or (off > 0 and not row.exact) else f"**fail** ({off:+.1f})"


def comparison(table: Table, out: Path, before: str = "") -> str:
    """Return the published and our numbers as a table in Markdown.

    Args:
        table: The table.
        out: Folder of the runs.
        before: The section as it was. A row keeps its line from there if that has the numbers of
            more seeds than `out` has; if its command was another one, the line says so.

    Raises:
        ValueError: If a run does not have a row's metric.
    """
    kept = measured(table, before)
    both_sides = all(row.exact for row in table.rows)
    lines = [
        f"## {table.title}",
        "",
        f"Published: {table.source} Seeds: {', '.join(map(str, table.seeds))}. Machine: "
        f"{table.machine}.",
        f"Tolerance: {table.points:g} points or 2 standard errors, whichever is larger"
        f"{'' if both_sides else '; a higher number also passes'}. {table.notes}".strip(),
        "",
        "| method | column | metric | published | ours | standard error | seeds | verdict |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in table.rows:
        values = numbers(table, row, out)
        seeds, line = kept.get(key_of(row), (0, ""))
        if seeds > len(values):
            lines.append(line)
            continue
        mean = f"{statistics.mean(values):.1f}" if values else "-"
        error = (
            f"{statistics.stdev(values) / math.sqrt(len(values)):.2f}" if len(values) > 1 else "-"
        )
        published = "-" if row.published is None else f"{row.published:.1f}"
        said = verdict(row, values, table.points) + (f", on {row.machine}" if row.machine else "")
        lines.append(
            f"| {row.method} | {row.column} | {row.metric} | {published} | {mean} | {error} | "
            f"{len(values)} | {said} |"
        )
    return "\n".join(lines) + "\n"


def commands(table: Table) -> str:
    """Return the command of each row and where its numbers come from, as a table in Markdown."""
    lines = [
        "| method | column | metric | command | the published number | settings |",
        "|---|---|---|---|---|---|",
    ]
    for row in table.rows:
        words = _seeded(["everloop", "run", *words_of(table, row), "--seed", "{seed}"], "SEED")
        lines.append(
            f"| {row.method} | {row.column} | {row.metric} | `{shlex.join(words)}` | "
            f"{row.standing or '-'} | {' '.join((row.search or '-').split())} |"
        )
    return "\n".join(lines) + "\n"


Key = tuple[str, str, str]
"""(method, column, metric) of a row."""


def key_of(row: Row) -> Key:
    """Return the cells that name the row in both tables of a section."""
    return row.method, row.column, row.metric


def measured(table: Table, section: str) -> dict[Key, tuple[int, str]]:
    """Return the rows of a written section that have numbers of ours.

    Args:
        table: The table as it is now.
        section: Text of its section of a report.

    Returns:
        (number of seeds, line of the comparison) by row. The line names a command that has changed.
    """
    old, new = _cells(section, 6), _cells(commands(table), 6)
    found: dict[Key, tuple[int, str]] = {}
    for key, (*figures, seeds, said) in _cells(section, 8).items():
        if not seeds.isdigit():  # the head of the table, or its rule
            continue
        then = old.get(key, [""])[0]
        if then and key in new and new[key][0] != then and "; measured with " not in said:
            said = f"{said}; measured with {then}"
        found[key] = int(seeds), f"| {' | '.join([*key, *figures, seeds, said])} |"
    return found


def _cells(text: str, columns: int) -> dict[Key, list[str]]:
    """Return the cells after the key, by key, of all lines of tables with so many columns."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines()]
    return {(line[0], line[1], line[2]): line[3:] for line in lines if len(line) == columns}


def read_section(name: str, report: Path) -> tuple[str, str, str]:
    """Return (text before the section `name` of the report, its text, text after it).

    Without a section, the last two are empty.

    Raises:
        ValueError: If the section begins but has no end.
    """
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    text = (
        report.read_text()
        if report.exists()
        else "# Published numbers, and ours\n\nWritten by `everloop reproduce NAME`.\n\n"
    )
    if begin not in text:
        return text.rstrip("\n") + "\n\n", "", ""
    head, rest = text.split(begin, 1)
    if end not in rest:
        raise ValueError(
            f"report {report} has {begin.strip()!r} without {end.strip()!r} after it; "
            "restore that line, or remove the section"
        )
    section, tail = rest.split(end, 1)
    return head, section, tail


def write_section(name: str, text: str, report: Path) -> None:
    """Replace the section `name` of the report with `text`, or append it.

    Raises:
        ValueError: If the section begins but has no end.
    """
    head, _, tail = read_section(name, report)
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(f"{head}<!-- {name} -->\n{text}<!-- end of {name} -->\n{tail}")


def choose_rows(table: Table, wanted: Sequence[str]) -> list[Row]:
    """Return the rows whose method or column is among `wanted`; all of them if it is empty.

    Raises:
        ValueError: If a word is neither a method nor a column of the table.
    """
    known = sorted({row.method for row in table.rows} | {row.column for row in table.rows})
    for word in wanted:
        if word not in known:
            raise ValueError(
                f"row {word!r} is not in table {table.name}; choose from {', '.join(known)}"
            )
    methods = {word for word in wanted if any(word == row.method for row in table.rows)}
    columns = set(wanted) - methods
    return [
        r
        for r in table.rows
        if (not methods or r.method in methods) and (not columns or r.column in columns)
    ]


def reproduce(asked: Reproduce, tell: Callable[[str], None]) -> tuple[str, Path]:
    """Run the table's rows and write its section of the report.

    If a run fails, the report is not changed. Numbers in the report stay where their runs are gone.

    Args:
        asked: The settings of the command.
        tell: Called with a line of text after each run.

    Returns:
        (the comparison in Markdown, the path of the report).

    Raises:
        ValueError: If a setting is wrong, or a run fails.
    """
    if asked.jobs < 1:
        raise ValueError(f"jobs is {asked.jobs}; it must be 1 or more")
    table = load_table(asked.table)
    chosen = choose_rows(table, asked.rows)
    report = asked.out / table.name / REPORT if asked.report is None else asked.report
    _, before, _ = read_section(table.name, report)
    run_rows(table, chosen, asked.out, asked.jobs, tell)
    text = comparison(table, asked.out, before)
    write_section(table.name, f"{text}\n{commands(table)}", report)
    return text, report
