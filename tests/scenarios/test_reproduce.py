"""Published tables: their rows are run as written and compared within their tolerance."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from everloop.contract import ACCURACY
from everloop.loop import Evaluation, Result
from everloop.loop.disk import write_json
from everloop.scenarios import SplitDigits
from everloop.scenarios.cli import main
from everloop.scenarios.published import TABLES, Row, Table, load_table
from everloop.scenarios.reproduce import (
    choose_rows,
    comparison,
    folder_of,
    run_rows,
    verdict,
    words_of,
    write_section,
)

TABLE = """
title: Digits
source: nobody, 2026.
common: --epochs 1 --tasks 0,{seed} --eval-every 100000
seeds: [1, 2]
rows:
  - {method: none, column: class, published: 50.0, exact: true, run: split-digits --strategies none}
  - {method: ER, column: class, published: 0.0, run: split-digits --strategies replay}
  - method: later
    column: task
    run: split-digits --scenario-type task --strategies none
    machine: a GPU
"""


def result_of(folder: Path) -> Any:
    return json.loads((folder / "result.json").read_text())


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "digits.yaml"
    path.write_text(TABLE)
    return path


def test_the_command_runs_what_is_missing_and_writes_the_table(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, report = tmp_path / "out", tmp_path / "docs" / "report.md"
    words = ["reproduce", str(table), "--rows", "class", "--out", str(out), "--report", str(report)]
    assert main(words) == 0
    first = capsys.readouterr().out
    assert first.count("seed 1:") == first.count("seed 2:") == 2
    loaded = load_table(str(table))
    folder = folder_of(loaded, loaded.rows[1], out)
    found = [
        100 * np.mean(np.array(result_of(folder / seed)["returns"][-1])[[0, int(seed)]])
        for seed in "12"
    ]
    error = np.std(found, ddof=1) / 2**0.5
    text = report.read_text()
    assert (
        f"| ER | class | final accuracy | 0.0 | {np.mean(found):.1f} | {error:.2f} | 2 | pass |"
        in text
    )
    assert "| later | task | final accuracy | - | - | - | 0 | -, on a GPU |" in text
    command = (
        "split-digits --epochs 1 --tasks 0,SEED --eval-every 100000 --strategies replay --seed SEED"
    )
    assert f"`everloop run {command}`" in text
    assert [result_of(folder / seed)["phases"] for seed in "12"] == [
        [["0-1"], ["2-3"]],
        [["0-1"], ["4-5"]],
    ]
    assert main(words) == 0
    assert "seed 1:" not in capsys.readouterr().out  # nothing is run twice
    assert report.read_text() == text


METRICS_TABLE = """
title: Made up
source: nobody, 2026.
common: --epochs 1
seeds: [1, 2]
rows:
  - {method: none, column: a, metric: BWT, run: &plain split-digits --strategies none}
  - {method: none, column: a, metric: one-step BWT, run: *plain}
  - {method: none, column: b, metric: online accuracy, run: *plain}
  - {method: none, column: b, run: *plain}
  - {method: EWC, column: b, run: split-digits --strategies ewc}
"""
SCORES = [[90.0, 0.0, 0.0], [70.0, 80.0, 0.0], [20.0, 50.0, 60.0]]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that would have run; each leaves a made-up result of three tasks."""
    ran: list[list[str]] = []

    def run_all(commands: Any, jobs: int, ended: Any) -> None:
        for i, words in enumerate(commands):
            ran.append(words)
            ends = [Evaluation(i, i, True, row, row) for i, row in enumerate(SCORES)]
            first = Evaluation(0, None, False, 3 * [0.0], 3 * [0.0])
            made = Result(["a", "b", "c"], [[0], [1], [2]], ACCURACY, [first, *ends])
            made.online_accuracy = 65.0
            folder = Path(words[words.index("--out") + 1])
            folder.mkdir(parents=True)
            write_json(folder / "result.json", made.to_dict())
            ended(i, None)

    monkeypatch.setattr("everloop.scenarios.reproduce.run_all", run_all)
    return ran


def test_rows_of_one_command_share_its_runs_and_each_takes_its_own_metric(
    tmp_path: Path, ran: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "made-up.yaml", tmp_path / "out"
    path.write_text(METRICS_TABLE)
    assert main(["reproduce", str(path), "--rows", "b", "--out", str(out)]) == 0
    assert [words[words.index("--seed") + 1] for words in ran] == ["1", "1", "2", "2"]
    assert [words[words.index("--strategies") + 1] for words in ran] == 2 * ["none", "ewc"]
    assert "none, b, seed 2: online accuracy 65.00" in capsys.readouterr().out.splitlines()
    assert main(["reproduce", str(path), "--out", str(out)]) == 0
    assert len(ran) == 4, "no row needs a run of its own"
    report = (out / "made-up" / "report.md").read_text()
    for column, metric, value in (
        ("a", "BWT", ((20 - 90) + (50 - 80)) / 2),
        ("a", "one-step BWT", ((70 - 90) + (50 - 80)) / 2),
        ("b", "online accuracy", 65),
        ("b", "final accuracy", (20 + 50 + 60) / 3),
    ):
        assert f"| none | {column} | {metric} | - | {value:.1f} | 0.00 | 2 | - |" in report
        assert f"| none | {column} | {metric} | `everloop run split-digits" in report


def rows_of(report: Path) -> list[str]:
    return [line for line in report.read_text().splitlines() if line.startswith("| none")]


def test_numbers_of_runs_that_are_gone_stay_in_the_report(
    tmp_path: Path, ran: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, report = tmp_path / "made-up.yaml", tmp_path / "report.md"
    path.write_text(METRICS_TABLE)
    words = ["reproduce", str(path), "--report", str(report), "--rows"]
    assert main([*words, "none", "--out", str(tmp_path / "out")]) == 0
    first = rows_of(report)
    assert main([*words, "EWC", "--out", str(tmp_path / "other")]) == 0
    assert rows_of(report) == first, "the rows of `none` were not run there"
    assert "| EWC | b | final accuracy | - | 43.3 | 0.00 | 2 | - |" in report.read_text()
    # fewer seeds replace none; as many do
    path.write_text(METRICS_TABLE.replace("[1, 2]", "[1]"))
    assert main([*words, "none", "--out", str(tmp_path / "one")]) == 0
    assert rows_of(report)[:4] == first[:4]
    path.write_text(METRICS_TABLE)
    monkeypatch.setitem(globals(), "SCORES", [[90.0, 0.0, 0.0], [70.0, 80.0, 0.0], 3 * [60.0]])
    assert main([*words, "none", "--out", str(tmp_path / "again")]) == 0
    assert "| none | b | final accuracy | - | 60.0 | 0.00 | 2 | - |" in rows_of(report)


def test_a_number_that_stays_names_its_command_if_that_has_changed(
    tmp_path: Path, ran: list[list[str]]
) -> None:
    path, report = tmp_path / "made-up.yaml", tmp_path / "report.md"
    words = ["reproduce", str(path), "--report", str(report), "--rows"]
    path.write_text(METRICS_TABLE)
    assert main([*words, "none", "--out", str(tmp_path / "out")]) == 0
    for epochs in "23":
        path.write_text(METRICS_TABLE.replace("--epochs 1", f"--epochs {epochs}"))
        assert main([*words, "EWC", "--out", str(tmp_path / epochs)]) == 0
    assert (
        "| none | b | final accuracy | - | 43.3 | 0.00 | 2 | -; measured with `everloop run "
        "split-digits --epochs 1 --strategies none --seed SEED` |"
    ) in rows_of(report)
    assert main([*words, "none", "--out", str(tmp_path / "out")]) == 0
    assert "measured with" not in report.read_text()


def test_a_metric_that_the_runs_lack_ends_in_one_line_with_the_reason(
    tmp_path: Path, ran: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "made-up.yaml"
    path.write_text(METRICS_TABLE.replace("metric: BWT", "metric: average return"))
    assert main(["reproduce", str(path), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "everloop: error: none, a: the run has no average return: it is a data set"
    ]


def test_a_pipe_gets_whole_lines(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, method = "a long source " * 10, "a long method " * 10
    content = TABLE.replace("nobody, 2026.", source).replace("method: ER", f"method: {method}")
    table.write_text(content)
    monkeypatch.setattr(
        "everloop.scenarios.reproduce.run_rows", lambda *args: args[-1](f"{method} is done")
    )
    assert main(["reproduce", str(table), "--out", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"{method} is done" in lines
    assert any(source.strip() in line and "Machine:" in line for line in lines)
    assert any(method.strip() in line and line.endswith("not yet run") for line in lines)
    assert lines[-1].startswith("report: ")


def test_after_a_failed_run_no_other_begins(table: Path, tmp_path: Path) -> None:
    loaded = load_table(str(table))
    rows = [Row("bad", "class", "split-digits --strategies nothing"), *loaded.rows]
    with pytest.raises(ValueError, match=r"--seed 1 --out .* --quiet: unknown strategy 'nothing'"):
        run_rows(loaded, rows, tmp_path, 1, print)
    assert not list(tmp_path.rglob("result.json"))


def test_a_report_whose_section_has_no_end_is_left_as_it_is(tmp_path: Path) -> None:
    report = tmp_path / "report.md"
    report.write_text("<!-- digits -->\nold\n")
    with pytest.raises(
        ValueError,
        match=(
            r"has '<!-- digits -->' without '<!-- end of digits -->' after it; restore "
            r"that line, or remove the section$"
        ),
    ):
        write_section("digits", "new\n", report)
    assert report.read_text() == "<!-- digits -->\nold\n"


def test_a_failed_table_leaves_the_report_as_it_is_and_none_is_written_outside_of_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(TABLE)
    assert main(["reproduce", "mine.yaml", "--rows", "none"]) == 0
    report = tmp_path / "runs" / "reproduce" / "mine" / "report.md"
    before = report.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.yaml", "runs"]
    (tmp_path / "mine.yaml").write_text(
        TABLE.replace("split-digits --strategies none", "split-digits --strategies nothing")
    )
    assert main(["reproduce", "mine.yaml"]) == 2
    assert report.read_text() == before


def test_another_command_is_another_run(table: Path, tmp_path: Path) -> None:
    loaded = load_table(str(table))
    changed = [Row(row.method, row.column, row.run + " --ewc.strength 2") for row in loaded.rows]
    folders = {folder_of(loaded, row, tmp_path) for row in [*loaded.rows, *changed]}
    assert len(folders) == 6
    assert words_of(loaded, loaded.rows[0])[:3] == ["split-digits", "--epochs", "1"]


@pytest.mark.parametrize(
    ("published", "exact", "values", "said"),
    [
        (90.0, False, [89.0, 89.0], "pass"),
        (90.0, False, [88.0, 88.0], "**fail** (-2.0)"),
        (90.0, False, [95.0, 95.0], "pass"),
        (90.0, True, [95.0, 95.0], "**fail** (+5.0)"),
        (90.0, True, [91.4], "pass"),
        (90.0, False, [80.0, 92.0], "pass"),  # 2 standard errors are 12
        (90.0, False, [], "not yet run"),
        (None, False, [90.0], "-"),
    ],
)
def test_a_row_passes_within_points_or_two_standard_errors_or_above(
    published: float | None, exact: bool, values: list[float], said: str
) -> None:
    assert verdict(Row("m", "c", "run", published=published, exact=exact), values, 1.5) == said


def test_only_a_table_with_inexact_rows_says_that_higher_numbers_pass(tmp_path: Path) -> None:
    rows = [Row("m", "c", "split-digits", exact=exact) for exact in (True, False)]
    for chosen, said in ((rows[:1], False), (rows, True)):
        text = comparison(Table("t", "Title", "source", "", [0], chosen), tmp_path)
        assert ("; a higher number also passes" in text) == said


names = st.text("abcdef", min_size=1, max_size=4)


@given(st.lists(st.tuples(names, st.text("xyz\n", max_size=10)), max_size=8))
def test_each_section_stands_once_in_the_report_with_its_last_text(
    writes: list[tuple[str, str]],
) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.md"
        for name, text in writes:
            write_section(name, text + "\n", report)
        now = report.read_text() if writes else ""
        for name, text in dict(writes).items():
            assert now.count(f"<!-- {name} -->\n") == 1
            assert f"<!-- {name} -->\n{text}\n<!-- end of {name} -->\n" in now


def test_rows_are_chosen_by_method_and_by_column(table: Path) -> None:
    loaded = load_table(str(table))
    assert [row.method for row in choose_rows(loaded, [])] == ["none", "ER", "later"]
    assert [row.method for row in choose_rows(loaded, ["class"])] == ["none", "ER"]
    assert [row.method for row in choose_rows(loaded, ["ER", "later"])] == ["ER", "later"]
    assert [row.method for row in choose_rows(loaded, ["ER", "class"])] == ["ER"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["nowhere"],
            "unknown table 'nowhere'. Choose one of agem, gem, l2-init, online-cifar100, "
            "online-split-mnist, rotated-mnist, three-types",
        ),
        (["three-tpyes"], "unknown table 'three-tpyes'. Did you mean 'three-types'?"),
        (
            ["DIGITS", "--rows", "EWC"],
            "row 'EWC' is not in table digits; choose from ER, class, later, none, task",
        ),
        (["DIGITS", "--jobs", "0"], "jobs is 0; it must be 1 or more"),
        (["BROKEN"], "can't be read"),
        (["FAILING"], "unknown scenario 'sea'"),
        (
            ["UNKNOWN"],
            "unknown.yaml: metric of row 'ER' is 'speed'. Choose one of final accuracy, online "
            "accuracy, BWT, one-step BWT, average return.",
        ),
    ],
)
def test_a_mistake_ends_in_one_line(
    words: list[str], line: str, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.yaml").write_text("title: x\nrows: [{methd: a}]\n")
    (tmp_path / "failing.yaml").write_text(TABLE.replace("run: split-digits", "run: sea"))
    (tmp_path / "unknown.yaml").write_text(TABLE.replace("ER,", "ER, metric: speed,"))
    places = {
        "DIGITS": table,
        "UNKNOWN": tmp_path / "unknown.yaml",
        "BROKEN": tmp_path / "broken.yaml",
        "FAILING": tmp_path / "failing.yaml",
    }
    named = [str(places.get(word, word)) for word in words]
    assert (
        main(
            [
                "reproduce",
                *named,
                "--out",
                str(tmp_path / "out"),
                "--report",
                str(tmp_path / "report.md"),
            ]
        )
        == 2
    )
    printed = capsys.readouterr().err.strip().splitlines()
    assert len(printed) == 1
    assert line in printed[0]


@pytest.mark.parametrize("path", sorted(TABLES.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_built_in_table_states_the_source_of_its_numbers_and_settings(
    path: Path,
) -> None:
    table = load_table(str(path))
    assert len(table.seeds) >= 5
    for row in table.rows:
        assert row.standing or row.published is None
        assert row.search or row.method in ("none", "joint")


def test_held_out_examples_are_never_trained_on_and_the_same_for_every_seed() -> None:
    train, test = SplitDigits(held_out=100).loaded
    everything = SplitDigits().loaded[0]
    pictures = {image.tobytes() for image in everything.inputs}
    assert len(train) == len(everything) - 100
    assert len(test) == 100
    assert {x.tobytes() for x in train.inputs} | {x.tobytes() for x in test.inputs} == pictures
    assert (SplitDigits(held_out=100).loaded[1].labels == test.labels).all()
    for bad in (-1, len(everything)):
        with pytest.raises(
            ValueError, match=f"held_out is {bad}; it must be 0 to {len(everything) - 1}"
        ):
            SplitDigits(held_out=bad).build(0)


def test_iterations_are_batches_of_each_task() -> None:
    _, plan, _, _ = SplitDigits(iterations=7, batch_size=16).build(0)
    assert plan.steps == [7 * 16] * 5
    with pytest.raises(ValueError, match="iterations is 0; it must be 1 or more"):
        SplitDigits(iterations=0).build(0)
    with pytest.raises(ValueError, match="iterations is 5; it must be null if gradual is above 0"):
        SplitDigits(iterations=5, gradual=0.5).build(0)
