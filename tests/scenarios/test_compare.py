"""Runs beside each other: who is in which row, with which numbers, and what is left out."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from everloop.contract import ACCURACY, RETURN, SCORE, Metric
from everloop.loop import Evaluation, Result
from everloop.loop.results.result import MEASURES, write_json
from everloop.scenarios.cli import main
from everloop.scenarios.compare import Comparisons, compare
from everloop.scenarios.compare_output import (
    curve,
    draw,
    print_comparisons,
    to_csv,
    to_latex,
    write,
)

Capture = pytest.CaptureFixture[str]


def run_at(
    folder: Path,
    level: float,
    seed: int,
    strategies: str = "ewc",
    metric: Metric = ACCURACY,
    phases: int = 2,
    **changes: Any,
) -> Path:
    """A run of two tasks that ends with this average, 10 below what it had learned of the first."""
    ends = [
        Evaluation(100, 0, True, [level + 10, 0.0], [0.0, 0.0]),
        Evaluation(150, 1, False, [level + 5, level - 5], [0.0, 0.0]),
        Evaluation(200, 1, True, [level, level], [0.0, 0.0]),
    ]
    first = Evaluation(0, None, False, changes.pop("before", [0.0, 0.0]), [0.0, 0.0])
    scenario = changes.pop("scenario", "made-up")
    evaluations = [first, *(ends if phases == 2 else ends[:1])]
    result = Result(
        changes.pop("tasks", ["a", "b"]),
        [[0], [1]],
        metric,
        evaluations,
        200,
        1.0,
        scenario,
        strategies.split("+"),
        seed,
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "result.json", result.to_dict())
    config = {
        "scenario": scenario,
        "strategies": strategies.split("+"),
        "seed": seed,
        "threads": 1 + seed,
        "epochs": 3,
        **changes,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def grid(folder: Path) -> Path:
    """none and ewc on seeds 0 to 2, which differ by 20 and a little, and joint on one."""
    for seed, noise in enumerate([0.0, 3.0, -2.0]):
        run_at(folder / f"x{seed}", 30 + noise, seed, "none")
        run_at(folder / "deep" / f"y{seed}", 50 + noise + seed / 10, seed)
    run_at(folder / "z", 90, 0, "joint")
    return folder


def shown(found: Comparisons, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    print_comparisons(found, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_seeds_of_the_same_settings_are_one_row_and_the_plain_one_is_the_baseline(
    tmp_path: Path,
) -> None:
    (table,) = compare([grid(tmp_path)]).tables
    assert [(group.label, sorted(group.results)) for group in table.groups] == [
        ("none", [0, 1, 2]),
        ("ewc", [0, 1, 2]),
        ("joint", [0]),
    ]
    assert table.baseline.label == "none"
    none, ewc, joint = table.groups
    assert table.estimate(none, "average_score").mean == pytest.approx((30 + 33 + 28) / 3)
    assert table.estimate(ewc, "forgetting").mean == pytest.approx(10)
    gap = table.difference(ewc)
    assert gap is not None
    assert (gap.n, gap.mean) == (3, pytest.approx(20.1))
    assert gap.half is not None
    assert gap.half < 0.3, "what the seeds have in common cancels"
    assert table.difference(none) is None
    alone = table.difference(joint)
    assert alone is not None
    assert (alone.n, alone.mean, alone.half) == (1, pytest.approx(60), None)


def test_rows_that_would_be_called_the_same_say_where_they_differ(tmp_path: Path) -> None:
    run_at(tmp_path / "a", 50, 0, ewc={"strength": 1.0, "decay": 1.0})
    run_at(tmp_path / "b", 60, 0, ewc={"strength": 10.0, "decay": 1.0})
    run_at(tmp_path / "c", 40, 0, "none")
    (table,) = compare([tmp_path]).tables
    assert [group.label for group in table.groups] == [
        "none",
        "ewc, ewc.strength=1.0",
        "ewc, ewc.strength=10.0",
    ]


def test_rows_of_a_sweep_are_sorted_by_number(tmp_path: Path) -> None:
    for i, strength in enumerate([10.0, 1e-05, 2.0, 100.0]):
        run_at(tmp_path / str(i), 50, 0, ewc={"strength": strength})
    labels = [group.label.partition("=")[2] for group in compare([tmp_path]).tables[0].groups]
    assert labels == ["1e-05", "2.0", "10.0", "100.0"]


def test_a_seed_of_a_strategys_own_and_threads_make_no_other_row(tmp_path: Path) -> None:
    run_at(tmp_path / "a", 50, 0, ewc={"seed": 0, "strength": 1.0})
    run_at(tmp_path / "b", 60, 1, ewc={"seed": 1, "strength": 1.0})
    (table,) = compare([tmp_path]).tables
    assert [sorted(group.results) for group in table.groups] == [[0, 1]]


@pytest.mark.parametrize(
    "changes",
    [{"scenario": "other"}, {"metric": SCORE}, {"tasks": ["a", "c"]}, {"scenario_type": "domain"}],
)
def test_what_can_not_be_averaged_stands_in_tables_of_its_own(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    run_at(tmp_path / "a", 50, 0)
    run_at(tmp_path / "b", 0.6, 0, **changes)
    assert [len(table.groups) for table in compare([tmp_path]).tables] == [1, 1]


def test_what_is_left_out_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_the_table_fits_into_80_columns_and_says_what_it_shows(tmp_path: Path) -> None:
    text = shown(compare([grid(tmp_path)]))
    assert max(map(len, text.splitlines())) <= 80
    row = next(line for line in text.splitlines() if line.startswith("ewc"))
    assert row.split() == [
        "ewc",
        "50.4",
        "±",
        "6.2",
        "10.0",
        "±",
        "0.0",
        "55.4",
        "±",
        "6.2",
        "3",
        "+20.1",
        "±",
        "0.2",
    ]
    assert {"average", "accuracy", "forgetting", "(points)", "(%)", "n", "difference"} <= set(
        text.split()
    )
    assert "95 % confidence interval over n seeds" in " ".join(text.split())
    assert "paired by seed" in " ".join(text.split())


@pytest.mark.parametrize(
    ("metric", "headings"),
    [(SCORE, ["average score", "forgetting"]), (RETURN, ["average return", "drop of return"])],
)
def test_other_metrics_have_their_own_words(
    metric: Metric, headings: list[str], tmp_path: Path
) -> None:
    run_at(tmp_path / "a", 0.5, 0, metric=metric)
    text = shown(compare([tmp_path]), 120)
    assert all(heading in text for heading in headings)
    assert "%)" not in text


def test_the_csv_holds_every_measure_of_every_row_whole(tmp_path: Path) -> None:
    found = compare([grid(tmp_path)])
    (table,) = found.tables
    rows = list(csv.DictReader(io.StringIO(to_csv(found))))
    assert len(rows) == len(table.groups) * len(MEASURES)
    for row in rows:
        group = next(group for group in table.groups if group.label == row["label"])
        own, gap = table.estimate(group, row["measure"]), table.difference(group, row["measure"])
        assert [row["mean"], row["low"], row["high"]] == [
            "" if x is None else repr(x) for x in (own.mean, own.low, own.high)
        ]
        assert row["difference"] == ("" if gap is None or gap.mean is None else repr(gap.mean))
        assert row["seeds"] == " ".join(map(str, group.results))


def test_the_latex_compiles_or_at_least_balances(tmp_path: Path) -> None:
    run_at(tmp_path / "a", 50, 0, "ewc_kfac", note="50 % & more_{}")
    run_at(tmp_path / "b", 60, 0, "ewc_kfac", note="~^\\#$ <|>")
    text = to_latex(compare([tmp_path]), "everloop compare x")
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 1
    assert r"ewc\_kfac, note=50 \% \& more\_\{\}" in text
    assert r"\#\$ \textless{}\textbar{}\textgreater{}" in text, (
        "the default font has other letters in these places"
    )
    body = text[text.index(r"\midrule") : text.index(r"\bottomrule")]
    assert all(line.replace(r"\&", "").count("&") == 5 for line in body.splitlines()[1:-1])
    if shutil.which("pdflatex"):
        head = "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n"
        source = f"{head}{text}\\end{{document}}\n"
        (tmp_path / "x.tex").write_text(source)
        assert (
            subprocess.run(
                ["pdflatex", "-halt-on-error", "x.tex"], cwd=tmp_path, capture_output=True
            ).returncode
            == 0
        )


def test_the_picture_draws_each_seed_the_mean_and_the_curves(tmp_path: Path) -> None:
    found = compare([grid(tmp_path)])
    left, right = draw(found).axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["none", "ewc", "joint"]
    seeds = [line for line in left.lines if line.get_marker() == "o"]
    assert [sorted(line.get_xdata()) for line in seeds] == [
        [28, 30, 33],
        [pytest.approx(x) for x in (48.2, 50, 53.1)],
        [90],
    ]
    lines = {
        line.get_label(): line for line in right.lines if not str(line.get_label()).startswith("_")
    }
    assert list(lines["none"].get_xdata()) == [100, 150, 200]
    assert list(lines["none"].get_ydata()) == pytest.approx(
        [np.mean([40, 43, 38]), np.mean([30, 33, 28]), np.mean([30, 33, 28])]
    )
    assert [line.get_xdata()[0] for line in right.lines if line.get_linestyle() == ":"] == [100]
    steps, _, halves = curve(found.tables[0].groups[0])
    assert steps == [100, 150, 200]
    assert halves[0] == pytest.approx(
        found.tables[0].estimate(found.tables[0].groups[0], "average_score").half
    )


def bare_run(
    folder: Path, seed: int, ends: tuple[int, int] = (100, 200), last: float = 60.0
) -> None:
    """A run of ewc whose phases end at these steps and whose first task ends at `last`."""
    evaluations = [
        Evaluation(0, None, False, [0.0, 0.0], [0.0, 0.0]),
        Evaluation(ends[0], 0, True, [70.0, 0.0], [0.0, 0.0]),
        Evaluation(ends[1], 1, True, [last, 50.0], [0.0, 0.0]),
    ]
    result = Result(
        ["a", "b"], [[0], [1]], ACCURACY, evaluations, ends[1], 1.0, "made-up", ["ewc"], seed
    )
    folder.mkdir(parents=True)
    write_json(folder / "result.json", result.to_dict())
    (folder / "config.yaml").write_text("scenario: made-up")


def test_a_measure_that_a_seed_lacks_is_noted_and_its_n_is_shown(tmp_path: Path) -> None:
    for seed, last in enumerate([60.0, 62.0, math.nan]):
        bare_run(tmp_path / str(seed), seed, last=last)
    found = compare([tmp_path])
    assert found.notes == [
        "made-up: unknown: average score of ewc (seed 2); forgetting of ewc (seed 2); average "
        "incremental score of ewc (seed 2)"
    ]
    row = next(line for line in shown(found, 120).splitlines() if line.startswith("ewc"))
    assert row.split()[1:5] == ["55.5", "±", "6.4", "(2)"]
    assert "in brackets: the number of seeds where it is not n" in shown(found, 120)


def test_a_measure_that_no_table_shows_is_noted_once_and_only_for_the_csv(tmp_path: Path) -> None:
    for name in ("none", "ewc"):
        run_at(tmp_path / name, 50, 0, name, before=[math.nan, math.nan])
    assert compare([tmp_path]).notes == []
    assert compare([tmp_path], measures=MEASURES).notes == [
        "made-up: forward transfer needs --eval-tasks all"
    ]


def test_a_run_of_one_phase_is_not_told_to_evaluate_more(tmp_path: Path) -> None:
    path = run_at(tmp_path / "joint", 50, 0, "joint", phases=1) / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"phases": [["a", "b"]]}))
    assert compare([tmp_path], measures=MEASURES).notes == []


def test_a_folder_without_settings_is_left_out(tmp_path: Path) -> None:
    run_at(tmp_path / "a", 50, 0)
    (run_at(tmp_path / "b", 50, 1) / "config.yaml").unlink()
    found = compare([tmp_path])
    assert found.notes == [f"not compared: {tmp_path / 'b'}: no config.yaml"]
    assert [sorted(group.results) for group in found.tables[0].groups] == [[0]]


def test_rows_that_differ_in_more_than_their_strategies_say_so(tmp_path: Path) -> None:
    digits = {"scenario": "split-digits", "scenario_type": "class"}
    run_at(tmp_path / "a", 30, 0, "none", **digits, iterations=5)
    run_at(tmp_path / "b", 50, 0, "replay", **digits, iterations=20)
    run_at(tmp_path / "c", 50, 0, "ewc", **digits, iterations=None)
    (table,) = compare([tmp_path]).tables
    assert [group.label for group in table.groups] == [
        "none, iterations=5",
        "ewc",
        "replay, iterations=20",
    ]
    assert table.remarks == [
        "rows differ in more than their strategies: iterations 5 (none), unset (ewc), 20 (replay)"
    ]
    assert table.remarks[0] in shown(compare([tmp_path]), 200)


def test_rows_that_differ_in_their_strategies_alone_need_no_remark(tmp_path: Path) -> None:
    run_at(tmp_path / "a", 30, 0, "none", scenario="split-digits")
    run_at(tmp_path / "b", 50, 0, "ewc", scenario="split-digits", ewc={"strength": 10.0})
    (table,) = compare([tmp_path]).tables
    assert [group.label for group in table.groups] == ["none", "ewc"]
    assert table.remarks == []


def test_only_what_is_not_the_default_is_named(tmp_path: Path) -> None:
    for i, strength in enumerate([1000.0, 10.0]):  # 1000 is split-digits' own
        run_at(tmp_path / str(i), 30, 0, "ewc", scenario="split-digits", ewc={"strength": strength})
    run_at(
        tmp_path / "c",
        30,
        0,
        "none",
        scenario="split-digits",
        optimizer={"class": "adamw", "weight_decay": 0.1},
    )
    run_at(tmp_path / "d", 30, 0, "none", scenario="split-digits", optimizer="adam")
    (table,) = compare([tmp_path]).tables
    assert [group.label for group in table.groups] == [
        "none",
        "none, optimizer=adamw, optimizer.weight_decay=0.1",
        "ewc",
        "ewc, ewc.strength=10.0",
    ]


def test_rows_that_are_equal_in_effect_keep_labels_of_their_own(tmp_path: Path) -> None:
    run_at(tmp_path / "a", 30, 0, "none", scenario="split-digits", gradual=0.0)
    run_at(tmp_path / "b", 30, 0, "none", scenario="split-digits")
    labels = [group.label for group in compare([tmp_path]).tables[0].groups]
    assert labels == ["none", "none, gradual=0.0"]


def test_a_label_breaks_between_settings_and_never_inside_one(tmp_path: Path) -> None:
    for rate in (0.001, 0.0005):
        for decay in (0.0, 0.1):
            training, optimizer = {"learning_rate": rate}, {"class": "adamw", "weight_decay": decay}
            run_at(
                tmp_path / f"{rate}-{decay}",
                30,
                0,
                "none",
                scenario="split-digits",
                training=training,
                optimizer=optimizer,
            )
    words = shown(compare([tmp_path])).split()
    for part in (
        "training.learning_rate=0.0005",
        "optimizer.weight_decay=0.1,",
        "difference",
        "forgetting",
        "incremental",
    ):
        assert part in words


def test_of_several_rows_without_strategies_the_baseline_is_named(tmp_path: Path) -> None:
    for iterations in (5, 20):
        run_at(
            tmp_path / str(iterations),
            30,
            0,
            "none",
            scenario="split-digits",
            iterations=iterations,
        )
    said = (
        "the baseline is 'none, iterations=5', the first of 2 rows with strategies none; "
        "choose another with --baseline LABEL"
    )
    assert said in compare([tmp_path]).tables[0].remarks
    chosen = compare([tmp_path], "none, iterations=20").tables[0]
    assert chosen.baseline.label == "none, iterations=20"
    assert not any("baseline" in line for line in chosen.remarks)


def test_a_baseline_can_be_named_by_its_strategies_alone(tmp_path: Path) -> None:
    run_at(tmp_path / "a", 30, 0, "none", scenario="split-digits", iterations=5)
    run_at(tmp_path / "b", 50, 0, "replay", scenario="split-digits", iterations=20)
    assert compare([tmp_path], "replay").tables[0].baseline.label == "replay, iterations=20"


def test_rows_without_a_common_seed_are_named(tmp_path: Path) -> None:
    run_at(tmp_path / "a", 30, 0, "none")
    run_at(tmp_path / "b", 30, 1, "ewc")
    run_at(tmp_path / "c", 30, 0, "joint")
    assert compare([tmp_path]).tables[0].remarks == ["no seed in common with 'none': ewc"]


def test_where_steps_differ_the_curve_has_a_point_for_each_end_of_a_phase(tmp_path: Path) -> None:
    for seed in range(3):
        bare_run(
            tmp_path / str(seed), seed, ends=(100 + 3 * seed, 200 + 6 * seed), last=60.0 + seed
        )
    steps, means, halves = curve(compare([tmp_path]).tables[0].groups[0])
    assert steps == [103, 206]
    assert means == pytest.approx([70, 55.5])
    assert halves[0] == 0
    assert halves[1] == pytest.approx(
        4.302652729911275 * 0.5 / math.sqrt(3)
    )  # t_(0.975, 2) s / sqrt(n)


def test_of_two_runs_of_a_seed_and_of_two_scenarios_the_first_is_the_same_in_any_order(
    tmp_path: Path,
) -> None:
    folders = [
        run_at(tmp_path / "a", 50, 0),
        run_at(tmp_path / "b", 70, 0),
        run_at(tmp_path / "c", 20, 0, scenario="other"),
    ]
    found, turned = compare(folders), compare(folders[::-1])
    assert to_csv(found) == to_csv(turned)
    assert (
        found.notes
        == turned.notes
        == [f"not compared: {tmp_path / 'b'}: another run has the same settings and seed 0"]
    )


def test_a_table_without_the_baseline_says_which_one_it_has(tmp_path: Path) -> None:
    run_at(tmp_path / "a", 50, 0, "ewc")
    run_at(tmp_path / "b", 50, 0, "replay", scenario="other")
    assert compare([tmp_path], "ewc").notes == ["other has no row 'ewc'; 'replay' is its baseline"]


def test_one_seed_has_no_bar_of_error(tmp_path: Path) -> None:
    (left, _) = draw(compare([grid(tmp_path)])).axes
    assert [bar.has_xerr for bar in left.containers] == [True, True, False]


def test_a_file_beside_the_written_one_stays(tmp_path: Path) -> None:
    (tmp_path / "x.csv.new").write_text("mine")
    write(tmp_path / "x.csv", lambda: "whole")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "x.csv": "whole",
        "x.csv.new": "mine",
    }


@settings(
    deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(order=st.permutations(range(7)))
def test_the_order_of_the_folders_does_not_matter(order: list[int], tmp_path: Path) -> None:
    if not (tmp_path / "z").exists():
        grid(tmp_path)
    folders = sorted(path.parent for path in tmp_path.rglob("result.json"))
    assert to_csv(compare([folders[i] for i in order])) == to_csv(compare([tmp_path]))


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
    short = ["--iterations", "2", "--consolidation-steps", "1"]
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
