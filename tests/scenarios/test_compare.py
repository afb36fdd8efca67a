"""The rows of a comparison: their runs, labels, baseline and notes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_runs import bare_run, grid, run_at, shown

from everloop.contract import SCORE
from everloop.loop.results.result import MEASURES
from everloop.scenarios.compare import compare
from everloop.scenarios.compare_output import (
    to_csv,
)


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


def test_labels_show_the_settings_in_which_rows_differ(tmp_path: Path) -> None:
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


def test_strategy_seeds_and_threads_make_no_separate_row(tmp_path: Path) -> None:
    run_at(tmp_path / "a", 50, 0, ewc={"seed": 0, "strength": 1.0})
    run_at(tmp_path / "b", 60, 1, ewc={"seed": 1, "strength": 1.0})
    (table,) = compare([tmp_path]).tables
    assert [sorted(group.results) for group in table.groups] == [[0, 1]]


@pytest.mark.parametrize(
    "changes",
    [{"scenario": "other"}, {"metric": SCORE}, {"tasks": ["a", "c"]}, {"scenario_type": "domain"}],
)
def test_incomparable_runs_stand_in_separate_tables(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    run_at(tmp_path / "a", 50, 0)
    run_at(tmp_path / "b", 0.6, 0, **changes)
    assert [len(table.groups) for table in compare([tmp_path]).tables] == [1, 1]


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


def test_a_measure_outside_the_tables_is_noted_only_for_the_csv(tmp_path: Path) -> None:
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


def test_labels_show_only_settings_that_are_not_the_default(tmp_path: Path) -> None:
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


def test_rows_that_are_equal_in_effect_keep_different_labels(tmp_path: Path) -> None:
    run_at(tmp_path / "a", 30, 0, "none", scenario="split-digits", gradual=0.0)
    run_at(tmp_path / "b", 30, 0, "none", scenario="split-digits")
    labels = [group.label for group in compare([tmp_path]).tables[0].groups]
    assert labels == ["none", "none, gradual=0.0"]


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


def test_rows_with_other_amounts_of_training_say_so(tmp_path: Path) -> None:
    for name, updates in (("none", 10), ("ewc", 10), ("packnet", 1250)):
        run_at(tmp_path / name, 50.0, 0, name, updates=updates, presentations=7)
    (table,) = compare([tmp_path]).tables
    said = "rows had different numbers of updates: 10 (none, ewc), 1,250 (packnet)"
    assert table.remarks == [said]


def test_rows_without_a_common_seed_are_named(tmp_path: Path) -> None:
    run_at(tmp_path / "a", 30, 0, "none")
    run_at(tmp_path / "b", 30, 1, "ewc")
    run_at(tmp_path / "c", 30, 0, "joint")
    assert compare([tmp_path]).tables[0].remarks == ["no seed in common with 'none': ewc"]


def test_the_result_is_the_same_in_any_order_of_folders(
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


@settings(
    deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(order=st.permutations(range(7)))
def test_the_order_of_the_folders_does_not_matter(order: list[int], tmp_path: Path) -> None:
    if not (tmp_path / "z").exists():
        grid(tmp_path)
    folders = sorted(path.parent for path in tmp_path.rglob("result.json"))
    assert to_csv(compare([folders[i] for i in order])) == to_csv(compare([tmp_path]))
