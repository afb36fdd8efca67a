"""result.json: its keys, its unknown numbers, and that it is written whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from everloop.loop import Evaluation, Result
from everloop.loop.result import write_json

KEYS = [
    "scenario",
    "strategies",
    "seed",
    "tasks",
    "phases",
    "scores",
    "before",
    "returns",
    "average_score",
    "forgetting",
    "backward_transfer",
    "forward_transfer",
    "learning_accuracy",
    "anytime_score",
    "steps",
    "wall_seconds",
]


def example(unknown: float = 0.25) -> Result:
    result = Result(["a", "b"], [[0], [1]], [0.0, unknown], [[0.5, unknown], [0.25, 0.75]], [[5.0, unknown], [2.5, 7.5]])
    result.evaluations = [Evaluation(320, 0, [0.5, unknown]), Evaluation(640, 1, [0.25, 0.75])]
    result.steps, result.wall_seconds = 640, 1.5
    return result


def test_the_content_has_the_documented_keys_in_order_and_the_runs_numbers() -> None:
    content = example().to_dict("digits", ["ewc", "replay"], 3)
    assert list(content) == KEYS
    assert content == {
        "scenario": "digits",
        "strategies": ["ewc", "replay"],
        "seed": 3,
        "tasks": ["a", "b"],
        "phases": [["a"], ["b"]],
        "scores": [[0.5, 0.25], [0.25, 0.75]],
        "before": [0.0, 0.25],
        "returns": [[5.0, 0.25], [2.5, 7.5]],
        "average_score": 0.5,
        "forgetting": 0.25,
        "backward_transfer": -0.25,
        "forward_transfer": 0.0,
        "learning_accuracy": 0.625,
        "anytime_score": 0.5,
        "steps": 640,
        "wall_seconds": 1.5,
    }


@pytest.mark.parametrize("unknown", [float("nan"), float("inf"), -float("inf")])
def test_unknown_numbers_are_null_and_never_nan(tmp_path: Path, unknown: float) -> None:
    path = tmp_path / "result.json"
    write_json(path, example(unknown).to_dict("digits", ["none"], 0))

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    content = json.loads(path.read_text(), parse_constant=refuse)
    assert list(content) == KEYS
    assert content["before"] == [0.0, None]
    assert content["scores"] == [[0.5, None], [0.25, 0.75]]
    assert content["returns"] == [[5.0, None], [2.5, 7.5]]
    assert content["forward_transfer"] is None
    assert content["average_score"] == 0.5


def test_a_file_is_replaced_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"long": list(range(100))})
    write_json(path, {"short": 1})
    assert json.loads(path.read_text()) == {"short": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_content_that_is_no_json_leaves_the_old_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"old": 1})
    for bad in ({"x": float("nan")}, {"x": object()}):
        with pytest.raises((ValueError, TypeError)):
            write_json(path, bad)
    assert json.loads(path.read_text()) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]
