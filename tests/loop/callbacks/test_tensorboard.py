"""The curves of a run in TensorBoard, read from its events."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from loop_helpers import mlp, run_of, stream
from result_helpers import finished_result
from tensorboard_helpers import SPECIAL_NAMES, Case, curve, near, read, replay

from everloop.loop import (
    Divergence,
    Evaluation,
    Plan,
    Run,
    SupervisedLearner,
    TensorBoardLogger,
    Training,
)
from everloop.loop.callbacks.curves import average_forgetting


def test_every_task_has_a_curve_of_scores_from_step_0(case: Case) -> None:
    for j, task in enumerate(case.result.tasks):
        expected = [(e.step, e.scores[j]) for e in case.result.evaluations]
        assert expected[0] == (0, case.result.before[j])
        assert curve(case.events, f"score/{task}") == near(expected)


def test_the_curve_of_forgetting_begins_after_training_of_the_task(case: Case) -> None:
    for j, task in enumerate(case.result.tasks):
        steps = [e.step for e in case.result.evaluations[1:]]
        expected = list(zip(steps, [row[j] for row in case.numbers.forgetting], strict=True))
        assert (f"forgetting/{task}" in case.events.Tags()["scalars"]) == (j < 3)
        if j < 3:
            assert curve(case.events, f"forgetting/{task}") == near(expected)
            assert curve(case.events, f"forgetting/{task}")[0][0] >= 80 * (j + 1)


def test_averages_are_written_at_every_evaluation(case: Case) -> None:
    steps = [e.step for e in case.result.evaluations[1:]]
    scores, forgetting = ([pair[i] for pair in case.numbers.averages] for i in (0, 1))
    assert len(steps) == 12
    assert None not in scores
    assert curve(case.events, "average/digits/score") == near(list(zip(steps, scores, strict=True)))
    assert curve(case.events, "average/digits/forgetting") == near(
        list(zip(steps, forgetting, strict=True))
    )
    # there is no forgetting in the first phase
    assert len(curve(case.events, "average/digits/forgetting")) == 8


def test_the_averages_equal_the_measures_after_a_phase(case: Case) -> None:
    for step, measures in zip((80, 160, 240), case.numbers.measures, strict=True):
        score = dict(curve(case.events, "average/digits/score"))[step]
        assert score == pytest.approx(measures["average_score"], abs=1e-5)
        forgetting = dict(curve(case.events, "average/digits/forgetting")).get(step)
        assert forgetting == pytest.approx(measures["forgetting"], abs=1e-5)


def test_the_average_forgetting_omits_a_task_that_is_trained_again() -> None:
    scores = [[0.0, 0.0], [90.0, 0.0], [30.0, 80.0], [85.0, 50.0]]
    result = finished_result(["a", "b"], scores, [[0], [1], [0]])
    assert result.forgetting_now() == [5.0, 30.0]
    assert average_forgetting(result) == 30.0 == result.forgetting


def test_measures_are_written_after_each_phase(case: Case) -> None:
    for name in case.numbers.measures[0]:
        points = [(80 * (i + 1), values[name]) for i, values in enumerate(case.numbers.measures)]
        known = [(step, value) for step, value in points if value is not None]
        tag = f"measures/digits/{name}"
        assert (curve(case.events, tag) if known else []) == near(known)
        assert known or tag not in case.events.Tags()["scalars"]
    assert len(curve(case.events, "measures/digits/forgetting")) == 2
    assert len(curve(case.events, "measures/digits/average_score")) == 3


def test_the_index_of_the_current_task_is_a_curve(case: Case) -> None:
    steps = [(0, 0), (80, 0), (80, 1), (160, 1), (160, 2), (240, 2)]
    assert curve(case.events, "task/index") == steps


def test_a_phase_of_several_tasks_has_no_task_index(tmp_path: Path) -> None:
    replay(
        finished_result(["a", "b"], [[0.0, 0.0], [50.0, 100.0]], [[0, 1]]),
        TensorBoardLogger(tmp_path),
    )
    assert "task/index" not in read(tmp_path).Tags()["scalars"]


def test_divergence_has_a_curve_for_every_ended_task_and_module(case: Case) -> None:
    tags = {tag for tag in case.events.Tags()["scalars"] if tag.startswith("divergence/")}
    kinds = [("kl", "layers"), ("weights", "layers"), ("kl", "network")]
    ended = case.result.tasks[:3]
    assert tags == {f"divergence/{kind}/{task}/{part}" for kind, part in kinds for task in ended}
    for tag in tags:
        seen = zip(case.result.evaluations[1:], case.numbers.divergences, strict=True)
        assert curve(case.events, tag) == near([(e.step, d.get(tag)) for e, d in seen])


def test_task_names_with_special_characters_have_curves(tmp_path: Path) -> None:
    rows = [[10.0 * i + j for j in range(5)] for i in range(6)]
    replay(finished_result(SPECIAL_NAMES, rows), TensorBoardLogger(tmp_path))
    events = read(tmp_path)
    for j, name in enumerate(SPECIAL_NAMES):
        assert curve(events, f"score/{name}") == [(10 * i, row[j]) for i, row in enumerate(rows)]


def test_a_run_writes_one_file_and_no_subfolders(tmp_path: Path) -> None:
    replay(finished_result(["x"], [[0.0], [50.0]]), TensorBoardLogger(tmp_path))
    assert len(list(tmp_path.rglob("*"))) == 1


def test_logged_numbers_are_written_under_their_names(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    result = finished_result(["x"], [[0.0]])
    logger.on_log(run_of(result, 32), {"train/loss": 0.5, "rollout/ep_rew_mean": -2.0})
    logger.on_log(run_of(result, 64), {"train/loss": 0.25, "train/gradient_norm": math.nan})
    logger.close()
    events = read(tmp_path)
    assert curve(events, "train/loss") == [(32, 0.5), (64, 0.25)]
    assert curve(events, "rollout/ep_rew_mean") == [(32, -2.0)]
    assert "train/gradient_norm" not in events.Tags()["scalars"]


def test_events_can_be_read_while_the_run_is_in_progress(tmp_path: Path) -> None:
    logger, result = TensorBoardLogger(tmp_path), finished_result(["a", "b"], [[0.0, 25.0]])
    logger.on_run_begin(run_of(result))
    assert curve(read(tmp_path), "score/b") == [(0, 25.0)]
    result.evaluations.append(Evaluation(10, 0, False, [50.0, math.nan], [0.5, math.nan]))
    logger.on_evaluation(run_of(result, 10))
    events = read(tmp_path)
    assert curve(events, "score/a") == [(0, 0.0), (10, 50.0)]
    assert curve(events, "score/b") == [(0, 25.0)]  # a task that was not evaluated gets no point
    logger.close()


def test_unknown_measures_are_not_written(tmp_path: Path) -> None:
    replay(
        finished_result(["a", "b"], [[0.0, 0.0], [50.0, 100.0]], [[0, 1]]),
        TensorBoardLogger(tmp_path),
    )
    tags = read(tmp_path).Tags()["scalars"]
    assert "average/made/score" in tags
    assert "average/made/forgetting" not in tags
    assert "measures/made/forgetting" not in tags


def resumable_run(folder: Path, seed: int) -> Run:
    """A run of two phases that is logged to `folder`."""
    learner = SupervisedLearner(mlp(seed=seed), stream(seed=seed), Training(1e-2))
    plan = Plan([[0], [1]], [80] * 2, eval_every=24)
    callbacks = [Divergence(), TensorBoardLogger(folder)]
    return Run(learner, plan, stream(16, split="test"), [], callbacks)


def test_a_resumed_run_has_the_same_curves_as_an_uninterrupted_one(tmp_path: Path) -> None:
    """The points of the interrupted run after the saved state are dropped."""
    resumable_run(tmp_path / "whole", 0).go()
    first = resumable_run(tmp_path / "parts", 0)
    first.begin()
    while first.steps < 100:
        first.advance()
    state = first.state_dict()
    while first.steps < 140:
        first.advance()
    first.log({"train/loss": 100.0})
    first.callbacks[1].close()  # type: ignore[attr-defined]
    second = resumable_run(tmp_path / "parts", 1)
    second.load_state_dict(state)
    second.go()
    whole, parts = read(tmp_path / "whole"), read(tmp_path / "parts")
    tags = whole.Tags()["scalars"]
    assert "divergence/kl/0-1/network" in tags
    assert sorted(parts.Tags()["scalars"]) == sorted(tags)
    assert {tag: curve(parts, tag) for tag in tags} == {tag: curve(whole, tag) for tag in tags}
