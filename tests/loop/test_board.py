"""What a run leaves in TensorBoard, read back from its events."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from loop_helpers import mlp, stream
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

from everloop.loop import Board, Evaluation, Listener, Plan, Result, SupervisedLearner, Training, run, score_matrix_figure

EVERYTHING = {"scalars": 0, "images": 0, "tensors": 0}


class Keep(Listener):
    """Keeps the divergences and forgetting of each evaluation."""

    def __init__(self) -> None:
        self.divergences: list[dict[str, float]] = []
        self.forgetting: list[list[float | None]] = []

    def on_evaluation(self, result: Result, divergence: dict[str, float]) -> None:
        self.divergences.append(dict(divergence))
        self.forgetting.append(result.forgetting_now())


Case = tuple[Result, Keep, EventAccumulator]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Three tasks of digits, evaluated four times each."""
    folder, keep = tmp_path_factory.mktemp("board"), Keep()
    learner = SupervisedLearner(mlp(), stream(), Training(1e-2))
    board = Board(folder)
    plan = Plan([[0], [1], [2]], [80] * 3, eval_every=24, consolidation_steps=4)
    result = run(learner, plan, stream(16, split="test"), stream(), [], [board, keep])
    return result, keep, read(folder)


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), EVERYTHING)
    events.Reload()
    return events


def curve(events: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events.Scalars(tag)]


def near(points: list[tuple[int, float]]) -> list[tuple[int, Any]]:
    """TensorBoard keeps single precision."""
    return [(step, pytest.approx(value, rel=1e-6, abs=1e-6)) for step, value in points]


def test_every_tasks_score_is_a_curve_over_all_steps_from_before_the_first(case: Case) -> None:
    result, _, events = case
    for j, task in enumerate(result.tasks):
        expected = [(0, result.before[j]), *((e.step, e.scores[j]) for e in result.evaluations)]
        assert curve(events, f"score/{task}") == near(expected)


def test_every_tasks_forgetting_begins_when_its_training_has_ended(case: Case) -> None:
    result, keep, events = case
    for j, task in enumerate(result.tasks):
        lost = [(e.step, f[j]) for e, f in zip(result.evaluations, keep.forgetting, strict=True)]
        expected = [(step, value) for step, value in lost if value is not None]
        assert (f"forgetting/{task}" in events.Tags()["scalars"]) == (j < 3)
        if j < 3:
            assert curve(events, f"forgetting/{task}") == near(expected)
            assert expected[0][0] >= 80 * (j + 1)


def test_at_the_end_the_curves_are_the_results_own_numbers(case: Case) -> None:
    result, _, events = case
    last = [curve(events, f"forgetting/{task}")[-1][1] for task in result.tasks[:2]]
    assert result.forgetting == pytest.approx(sum(last) / 2, abs=1e-6)
    assert [step for step, _ in curve(events, "average/score")] == [80, 160, 240]
    assert curve(events, "average/score")[-1:] == near([(240, result.average_score or 0.0)])
    assert curve(events, "average/forgetting")[-1:] == near([(240, result.forgetting or 0.0)])
    assert [curve(events, f"score/{task}")[-1][1] for task in result.tasks] == pytest.approx(result.scores[-1], abs=1e-6)


def test_divergence_has_a_curve_for_every_ended_task_and_module(case: Case) -> None:
    result, keep, events = case
    tags = {tag for tag in events.Tags()["scalars"] if tag.startswith(("kl/", "weights/"))}
    ended = result.tasks[:3]
    assert tags == {f"{kind}/{task}/layers" for kind in ("kl", "weights") for task in ended} | {f"kl/{task}/network" for task in ended}
    for tag in tags:
        values = [(e.step, d[tag]) for e, d in zip(result.evaluations, keep.divergences, strict=True) if tag in d]
        assert curve(events, tag) == near(values)


def test_one_chart_shows_all_tasks_forgetting_and_one_all_their_scores(case: Case) -> None:
    result, _, events = case
    (event,) = events.Tensors("custom_scalars__config__")
    layout = Layout.FromString(event.tensor_proto.string_val[0])
    charts = {chart.title: list(chart.multiline.tag) for category in layout.category for chart in category.chart}
    assert charts == {name: [f"{name}/{task}" for task in result.tasks] for name in ("forgetting", "score")}


def test_the_score_matrix_is_an_image_after_each_phase(case: Case) -> None:
    _, _, events = case
    images = events.Images("score matrix")
    assert [image.step for image in images] == [80, 160, 240]
    assert all(image.encoded_image_string.startswith(b"\x89PNG") for image in images)
    assert len({image.encoded_image_string for image in images}) == 3


def test_numbers_about_training_are_written_under_their_names(tmp_path: Path) -> None:
    board = Board(tmp_path)
    board.on_scalars(32, {"train/loss": 0.5, "rollout/ep_rew_mean": -2.0})
    board.on_scalars(64, {"train/loss": 0.25})
    board.close()
    events = read(tmp_path)
    assert curve(events, "train/loss") == [(32, 0.5), (64, 0.25)]
    assert curve(events, "rollout/ep_rew_mean") == [(32, -2.0)]


def test_what_happened_can_be_read_while_the_run_goes_on(tmp_path: Path) -> None:
    board, result = Board(tmp_path), Result(["a", "b"], [[0], [1]], [0.0, 0.25])
    board.on_begin(result, 100)
    result.evaluations.append(Evaluation(10, 0, [0.5, 0.125]))
    board.on_evaluation(result, {"kl/a/network": 0.75})
    events = read(tmp_path)
    assert curve(events, "score/a") == [(0, 0.0), (10, 0.5)]
    assert curve(events, "kl/a/network") == [(10, 0.75)]
    board.close()


def test_measures_that_are_unknown_are_not_written(tmp_path: Path) -> None:
    board, result = Board(tmp_path), Result(["a", "b"], [[0, 1]], [0.0, 0.0])
    board.on_begin(result, 10)
    result.scores.append([0.5, 1.0])
    result.evaluations.append(Evaluation(10, 0, [0.5, 1.0]))
    result.steps = 10
    board.on_evaluation(result, {})
    board.on_end(result)
    tags = read(tmp_path).Tags()["scalars"]
    assert "average/score" in tags
    assert "average/forgetting" not in tags


def texts(figure: Figure, axes: int = 0) -> list[str]:
    return [text.get_text() for text in figure.axes[axes].texts]


def test_the_figure_shows_every_number_and_name() -> None:
    result = Result(["zero", "one"], [[0], [1]], [0.0, -0.125], [[0.875, 0.25], [0.5, float("nan")]])
    figure = score_matrix_figure({"plain": result})
    axes = figure.axes[0]
    assert texts(figure) == ["0.00", "-0.12", "0.88", "0.25", "0.50", ""]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["zero", "one"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["before", "after 1", "after 2"]
    assert axes.get_title() == "plain"
    positions = [text.get_position() for text in axes.texts]
    assert positions == [(j, i) for i in range(3) for j in range(2)]


def test_several_results_stand_side_by_side() -> None:
    a = Result(["x", "y"], [[0], [1]], [0.0, 0.0], [[1.0, 0.0], [0.0, 1.0]])
    b = Result(["x", "y"], [[0, 1]], [0.0, 0.0], [[0.75, 0.5]])
    figure = score_matrix_figure({"none": a, "joint": b})
    assert [axes.get_title() for axes in figure.axes[:2]] == ["none", "joint"]
    assert texts(figure, 1) == ["0.00", "0.00", "0.75", "0.50"]
