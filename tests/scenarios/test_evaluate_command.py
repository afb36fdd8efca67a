"""`everloop evaluate` measures what the run measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from run_files import fails

from everloop.loop import Result
from everloop.scenarios.cli import main

DIGITS = ["run", "split-digits", "--iterations", "3", "--quiet"]
PLANT = [
    *["run", "switching-plant", "--steps", "512", "--num-tasks", "2", "--n-steps", "16"],
    *["--token-size", "8", "--hidden-size", "8", "--quiet"],
]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def evaluated(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    capsys.readouterr()
    assert main(["evaluate", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    "words",
    [
        [*DIGITS, "--strategies", "replay"],
        [*DIGITS, "--strategies", "icarl", "--tasks", "2-3,0-1"],
        [*DIGITS, "--strategies", "hat", "--scenario-type", "task"],
        [*PLANT, "--strategies", "packnet"],
        [*PLANT, "--algorithm", "sac", "--steps", "96"],
    ],
    ids=["replay", "icarl", "hat", "packnet", "sac"],
)
def test_an_evaluation_equals_the_last_one_of_the_run(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--out", "x"]) == 0
    result = Result.load("x")
    last = result.evaluations[-1]
    found = evaluated(capsys, "x")
    assert found["step"] == last.step == result.steps
    assert found["metric"] == result.metric.name
    expected = {
        name: {"score": score, "return": G, "recorded": score}
        for name, score, G in zip(result.tasks, last.scores, last.returns, strict=True)
        if score == score
    }
    assert found["tasks"] == expected
    assert len(expected) >= 2


def test_an_earlier_checkpoint_equals_the_evaluation_at_its_step(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*DIGITS, "--tasks", "0,1", "--checkpoint-every", "1", "--out", "x"]) == 0
    assert len(list(Path("x/checkpoints").iterdir())) == 1
    keep = ["--keep-best", "average_score", "--eval-every", "32", "--out", "y"]
    assert main([*DIGITS, "--tasks", "0,1", *keep]) == 0
    names = sorted(path.name for path in Path("y/checkpoints").iterdir())
    by_step = {e.step: e.scores for e in Result.load("y").evaluations}
    for name in names:
        found = evaluated(capsys, "y", "--checkpoint", name)
        scores = by_step[found["step"]]
        assert [one["score"] for one in found["tasks"].values()] == scores[: len(found["tasks"])]


def test_the_table_shows_what_is_measured_beside_what_was_recorded(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*DIGITS, "--tasks", "0-1,2-3", "--eval-tasks", "seen", "--out", "x"]) == 0
    capsys.readouterr()
    assert main(["evaluate", "x", "--tasks", "2-3,4"]) == 0
    heading, *rows, last = capsys.readouterr().out.splitlines()
    assert heading.split() == ["task", "accuracy", "in", "%", "recorded", "at", "step", "192"]
    score = f"{Result.load('x').evaluations[-1].scores[1]:.1f}"
    assert rows[0].split() == ["2-3", score, score]
    assert rows[1].split() == ["8-9", "0.0", "-"], "the run has neither seen nor evaluated it"
    assert last == "x at step 192 (step-192)"


def test_more_episodes_are_more_copies_of_the_world(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*PLANT, "--out", "x"]) == 0
    same = evaluated(capsys, "x", "--episodes", "32", "--tasks", "1")["tasks"]
    assert same["plant-1"]["score"] == same["plant-1"]["recorded"]
    fewer = evaluated(capsys, "x", "--episodes", "3", "--tasks", "plant-1")["tasks"]
    assert list(fewer) == ["plant-1"]
    assert fewer["plant-1"]["return"] != same["plant-1"]["return"]
    assert main(["evaluate", "x"]) == 0
    assert capsys.readouterr().out.splitlines()[0].split()[:3] == ["task", "score", "return"]
    fails(["evaluate", "x", "--episodes", "0"], capsys, "episodes is 0; it must be 1 or more")


def test_what_can_not_be_evaluated_is_refused_in_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*DIGITS, "--tasks", "0", "--out", "x"]) == 0
    fails(
        ["evaluate", "x", "--episodes", "5"],
        capsys,
        "episodes is 5; leave it out, because split-digits shows every test example once",
    )
    fails(["evaluate", "x", "--tasks", "7-9"], capsys, "unknown task '7-9'")
    fails(["evaluate", "x", "--checkpoint", "step-1"], capsys, "has no checkpoint 'step-1'")
    fails(["evaluate", "nothing"], capsys, "nothing holds no run: it has no config.yaml")
    fails(["evaluate"], capsys, "no folder is named; write everloop evaluate FOLDER")
