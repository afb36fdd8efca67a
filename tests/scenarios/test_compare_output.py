"""A comparison as a table, CSV, LaTeX and a figure."""

from __future__ import annotations

import csv
import io
import math
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from made_runs import bare_run, grid, run_at, shown

from everloop.contract import RETURN, SCORE, Metric
from everloop.loop.results.result import MEASURES
from everloop.scenarios.compare import compare
from everloop.scenarios.compare_output import (
    curve,
    draw,
    to_csv,
    to_latex,
    write,
)


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


def test_the_csv_has_every_measure_of_every_row_in_full_precision(tmp_path: Path) -> None:
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


def test_where_steps_differ_the_curve_has_a_point_per_phase(tmp_path: Path) -> None:
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
