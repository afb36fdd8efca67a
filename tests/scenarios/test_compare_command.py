"""The command `everloop compare`: what it prints, writes and refuses."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from made_runs import grid, run_at

from everloop.scenarios.cli import main
from everloop.scenarios.compare import compare
from everloop.scenarios.compare_output import (
    to_csv,
)


def test_runs_that_are_left_out_are_noted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid(tmp_path / "g")
    run_at(tmp_path / "g" / "late", 50, 3, phases=1)
    run_at(tmp_path / "g" / "twin", 50, 0)
    (tmp_path / "g" / "bad").mkdir()
    (tmp_path / "g" / "bad" / "result.json").write_text("{")
    (tmp_path / "empty").mkdir()
    found = compare([tmp_path / "g", tmp_path / "empty"])
    said = sorted(note.removeprefix(f"not compared: {tmp_path}") for note in found.notes)
    assert said[0].startswith("/empty: it contains no result.json")
    assert said[1].startswith("/g/bad: ")
    assert said[2:] == [
        "/g/late: unfinished, 1 of 2 phases are done",
        "/g/twin: another run has the same settings and seed 0",
    ]
    assert main(["compare", str(tmp_path / "g")]) == 0
    assert len(capsys.readouterr().err.splitlines()) == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no folder is named"),
        (["nowhere"], "nowhere is not a folder; name folders that hold runs"),
        (
            ["empty"],
            "no complete run was found; not compared: empty: it contains no result.json",
        ),
        (
            ["runs", "--baseline", "best"],
            "baseline is 'best'; choose one of 'none', 'ewc', 'joint'",
        ),
        (["runs", "--figure", "x.gif"], "figure is x.gif; its name must end in .pdf, .png or .svg"),
        (
            ["runs", "--csv", "no/such/x.csv"],
            "no/such/x.csv can't be written: the folder no/such does not exist",
        ),
        (["runs", "--cvs", "x"], "Did you mean 'csv'?"),
    ],
)
def test_a_mistake_is_one_line(
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    grid(tmp_path / "runs")
    (tmp_path / "empty").mkdir()
    assert main(["compare", *words]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1
    assert said in errors[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "runs"]


def test_a_pipe_gets_whole_lines_without_padding(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for iterations in (5, 20):
        run_at(
            tmp_path / str(iterations),
            30,
            0,
            "none",
            scenario="split-digits",
            iterations=iterations,
            ood_ratio=0.1234567,
            gradual=0.5,
        )
    run_at(tmp_path / "c", 30, 0, "ewc", scenario="split-digits", iterations=3)
    assert main(["compare", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [line.rstrip() for line in lines]
    row = next(
        line
        for line in lines
        if line.startswith("none, gradual=0.5, iterations=5, ood_ratio=0.1234567")
    )
    assert row.split()[-5:] == ["30.0", "10.0", "35.0", "1", "-"]
    assert max(map(len, lines)) > 80


def test_an_ascii_terminal_gets_its_own_plus_minus(tmp_path: Path) -> None:
    grid(tmp_path)
    words = [sys.executable, "-m", "everloop", "compare", str(tmp_path)]
    done = subprocess.run(
        words, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}
    )
    assert done.returncode == 0, done.stderr
    assert b"30.3 +- 6.3" in done.stdout


def test_json_is_all_there_is_on_the_standard_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid(tmp_path / "runs")
    run_at(tmp_path / "runs" / "late", 50, 3, phases=1)
    assert (
        main(["compare", "--json", str(tmp_path / "runs"), "--latex", str(tmp_path / "x.tex")]) == 0
    )
    printed = capsys.readouterr()
    content = json.loads(printed.out)
    (table,) = content["tables"]
    assert (table["scenario"], table["baseline"], table["metric"]) == (
        "made-up",
        "none",
        {"name": "accuracy", "unit": "%"},
    )
    none, ewc, _ = table["rows"]
    assert (ewc["label"], ewc["seeds"], none["measures"]["average_score"]["difference"]) == (
        "ewc",
        [0, 1, 2],
        None,
    )
    average = ewc["measures"]["average_score"]
    assert average["values"] == {"0": 50.0, "1": 53.1, "2": 48.2}
    assert average["difference"]["mean"] == pytest.approx(20.1)
    assert content["notes"] == [
        f"not compared: {tmp_path / 'runs' / 'late'}: unfinished, 1 of 2 phases are done"
    ]
    assert f"written: {tmp_path / 'x.tex'}" in printed.err


def test_a_csv_called_dash_goes_to_the_standard_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid(tmp_path)
    assert main(["compare", str(tmp_path), "--csv", "-"]) == 0
    assert capsys.readouterr().out == to_csv(compare([tmp_path]))
    assert main(["compare", str(tmp_path), "--csv", "-", "--json"]) == 2
    assert "--json and --csv - both print to the standard output" in capsys.readouterr().err


def test_a_figure_without_matplotlib_is_refused_before_anything_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["compare", str(grid(tmp_path)), "--figure", str(tmp_path / "x.pdf")]) == 2
    assert capsys.readouterr() == (
        "",
        "everloop: error: a figure needs the package matplotlib: pip install matplotlib\n",
    )


def test_from_nothing_to_a_table_and_a_picture_in_two_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    short = ["--iterations", "2"]
    assert (
        main(
            [
                "run",
                "split-digits",
                "--strategies",
                "none;replay",
                "--seeds",
                "0-1",
                "--jobs",
                "2",
                *short,
            ]
        )
        == 0
    )
    assert (
        main(
            [
                "compare",
                "runs/split-digits",
                "--figure",
                "x.pdf",
                "--csv",
                "x.csv",
                "--latex",
                "x.tex",
            ]
        )
        == 0
    )
    assert Path("x.pdf").read_bytes().startswith(b"%PDF")
    assert Path("x.tex").read_text().startswith("% ")
    rows = [
        row
        for row in csv.DictReader(io.StringIO(Path("x.csv").read_text()))
        if row["measure"] == "average_score"
    ]
    for row in rows:
        results = [json.loads(path.read_text()) for path in Path("runs").rglob("result.json")]
        values = [r["average_score"] for r in results if "+".join(r["strategies"]) == row["label"]]
        assert float(row["mean"]) == pytest.approx(np.mean(values))
        assert row["n"] == "2"
    assert [row["label"] for row in rows] == ["none", "replay"]
