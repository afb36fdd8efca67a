"""Published tables: their rows are run as written and compared within their tolerance."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from everloop.scenarios import SplitDigits
from everloop.scenarios.cli import main
from everloop.scenarios.reproduce import (
    TABLES,
    Row,
    choose_rows,
    folder_of,
    load_table,
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
        100 * np.mean(json.loads((folder / seed / "result.json").read_text())["returns"][-1])
        for seed in "12"
    ]
    error = np.std(found, ddof=1) / 2**0.5
    text = report.read_text()
    assert f"| ER | class | 0.0 | {np.mean(found):.1f} | {error:.2f} | 2 | pass |" in text
    assert "| later | task | - | - | - | 0 | -, on a GPU |" in text
    command = (
        "split-digits --epochs 1 --tasks 0,SEED --eval-every 100000 --strategies replay --seed SEED"
    )
    assert f"`everloop run {command}`" in text
    assert [json.loads((folder / seed / "result.json").read_text())["phases"] for seed in "12"] == [
        [["0-1"], ["2-3"]],
        [["0-1"], ["4-5"]],
    ]
    assert main(words) == 0
    assert "seed 1:" not in capsys.readouterr().out  # nothing is run twice
    assert report.read_text() == text


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
    assert verdict(Row("m", "c", "run", published, exact=exact), values, 1.5) == said


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
            "unknown table 'nowhere'. Choose one of online-cifar100, rotated-mnist, three-types",
        ),
        (["three-tpyes"], "unknown table 'three-tpyes'. Did you mean 'three-types'?"),
        (
            ["DIGITS", "--rows", "EWC"],
            "row 'EWC' is not in table digits; choose from ER, class, later, none, task",
        ),
        (["DIGITS", "--jobs", "0"], "jobs is 0; it must be 1 or more"),
        (["BROKEN"], "can't be read"),
        (["FAILING"], "unknown scenario 'sea'"),
    ],
)
def test_a_mistake_ends_in_one_line(
    words: list[str], line: str, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.yaml").write_text("title: x\nrows: [{methd: a}]\n")
    (tmp_path / "failing.yaml").write_text(TABLE.replace("run: split-digits", "run: sea"))
    places = {
        "DIGITS": table,
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
