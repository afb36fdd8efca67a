"""The file result.json: keys, unknown numbers, exact round trips, and errors."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everloop.contract import SCORE, Metric
from everloop.loop import Evaluation, Result
from everloop.loop.disk import write_json


def example(unknown: float = 0.25) -> Result:
    evaluations = [
        Evaluation(0, None, False, [0.0, unknown], [0.0, unknown]),
        Evaluation(320, 0, True, [0.5, unknown], [5.0, unknown]),
        Evaluation(480, 1, False, [0.5, 0.25], [5.0, 2.5]),
        Evaluation(640, 1, True, [0.25, 0.75], [2.5, 7.5]),
    ]
    return Result(
        ["a", "b"],
        [[0], [1]],
        SCORE,
        evaluations,
        steps=640,
        updates=20,
        presentations=900,
        online_return=3.5,
        wall_seconds=1.5,
        scenario="digits",
        strategies=["ewc", "replay"],
        seed=3,
    )


def test_the_content_has_the_documented_keys_in_order() -> None:
    content = example().to_dict()
    expected = {
        "version": 2,
        "scenario": "digits",
        "strategies": ["ewc", "replay"],
        "seed": 3,
        "complete": True,
        "metric": {"name": "score", "unit": "", "new_classes": False},
        "tasks": ["a", "b"],
        "phases": [["a"], ["b"]],
        "average_score": 0.5,
        "average_incremental_score": 0.5,
        "forgetting": 0.25,
        "backward_transfer": -0.25,
        "one_step_backward_transfer": -0.25,
        "forward_transfer": 0.0,
        "learning_accuracy": 0.625,
        "anytime_score": (320 * 0.5 + 160 * 0.375 + 160 * 0.5) / 640,
        "min_accuracy": 0.25,
        "worst_case_accuracy": 0.5 * 0.75 + 0.5 * 0.25,
        "online_accuracy": None,
        "online_return": 3.5,
        "reasons": {"online_accuracy": "the world reveals no labels"},
        "before": [0.0, 0.25],
        "scores": [[0.5, 0.25], [0.25, 0.75]],
        "returns": [[5.0, 0.25], [2.5, 7.5]],
        "steps": 640,
        "updates": 20,
        "presentations": 900,
        "wall_seconds": 1.5,
        "rollbacks": [],
        "evaluations": [
            {
                "step": 0,
                "phase": None,
                "ends_phase": False,
                "scores": [0.0, 0.25],
                "returns": [0.0, 0.25],
            },
            {
                "step": 320,
                "phase": 0,
                "ends_phase": True,
                "scores": [0.5, 0.25],
                "returns": [5.0, 0.25],
            },
            {
                "step": 480,
                "phase": 1,
                "ends_phase": False,
                "scores": [0.5, 0.25],
                "returns": [5.0, 2.5],
            },
            {
                "step": 640,
                "phase": 1,
                "ends_phase": True,
                "scores": [0.25, 0.75],
                "returns": [2.5, 7.5],
            },
        ],
    }
    assert content == expected
    assert list(content) == list(expected)


@pytest.mark.parametrize("unknown", [float("nan"), float("inf"), -float("inf")])
def test_unknown_numbers_are_null_in_json(tmp_path: Path, unknown: float) -> None:
    path = tmp_path / "result.json"
    write_json(path, example(unknown).to_dict())

    def reject_constant(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    content = json.loads(path.read_text(), parse_constant=reject_constant)
    assert list(content) == list(example().to_dict())
    assert content["before"] == [0.0, None]
    assert content["scores"] == [[0.5, None], [0.25, 0.75]]
    assert content["returns"] == [[5.0, None], [2.5, 7.5]]
    assert content["evaluations"][1]["scores"] == [0.5, None]
    assert content["forward_transfer"] is None
    assert content["average_score"] == 0.5


@st.composite
def results(draw: st.DrawFn) -> Result:
    """A run in progress or finished, with any task names and some unknown scores."""
    tasks = draw(st.lists(st.text(min_size=1), min_size=1, max_size=4, unique=True))
    ids = st.integers(0, len(tasks) - 1)
    phases = draw(
        st.lists(st.lists(ids, min_size=1, max_size=2, unique=True), min_size=1, max_size=4)
    )
    number = st.one_of(st.floats(-100, 100), st.just(math.nan))
    row = st.lists(number, min_size=len(tasks), max_size=len(tasks))
    evaluations, step = [Evaluation(0, None, False, draw(row), draw(row))], 0
    for phase in range(draw(st.integers(0, len(phases)))):
        for ends in (False, True):
            step += draw(st.integers(1, 1000))
            evaluations.append(Evaluation(step, phase, ends, draw(row), draw(row)))
    metric = draw(st.sampled_from([SCORE, Metric("accuracy", "%"), Metric("return")]))
    return Result(
        tasks,
        phases,
        metric,
        evaluations,
        step,
        draw(st.floats(0, 1e6)),
        "made-up",
        ["none"],
        draw(st.integers(0, 99)),
    )


@given(result=results())
def test_a_loaded_result_equals_the_saved_one(
    result: Result, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("run")
    write_json(folder / "result.json", result.to_dict())
    for path in (folder, folder / "result.json", str(folder)):
        loaded = Result.load(path)
        assert repr(loaded) == repr(result)  # nan equals itself in text
        assert loaded.to_dict() == result.to_dict()


def test_a_run_that_stopped_early_has_the_measures_of_its_phases(tmp_path: Path) -> None:
    result = example()
    del result.evaluations[-1]
    write_json(tmp_path / "result.json", result.to_dict())
    loaded = Result.load(tmp_path)
    assert not loaded.complete
    assert loaded.average_score == 0.5
    assert loaded.forgetting is None
    assert loaded.average_now() == pytest.approx((0.5 + 0.25) / 2)


def broken(**changes: Any) -> str:
    return json.dumps(example().to_dict() | changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "holds no result.json; give the folder of a run that has ended a phase"),
        ("{", "can't be read"),
        ("[]", "has format version None; this everloop reads version 2"),
        (broken(version=7), "has format version 7; this everloop reads version 2"),
        (broken(evaluations=[{}]), "is damaged (KeyError: 'step')"),
        (broken(phases=[["c"]]), "is damaged"),
        (broken(metric={"name": "x", "color": "red"}), "is damaged"),
        (broken(evaluations=None), "is damaged"),
    ],
)
def test_invalid_result_files_are_refused_in_one_line(
    text: str | None, message: str, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / "result.json").write_text(text)
    with pytest.raises(ValueError, match=r"result\.json") as error:
        Result.load(tmp_path)
    assert message in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        (Metric("accuracy", "%"), 53.4567, "53.5"),
        (Metric("accuracy", "%"), 0.0, "0.0"),
        (SCORE, 0.946, "0.95"),
        (Metric("return"), 500.0, "500"),
        (Metric("return"), -1234.56, "-1235"),
        (SCORE, None, "-"),
        (SCORE, math.nan, "-"),
    ],
)
def test_a_metric_rounds_its_numbers(metric: Metric, value: float | None, text: str) -> None:
    assert metric.text(value) == text
