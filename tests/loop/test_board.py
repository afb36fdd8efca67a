"""What a run leaves in TensorBoard, read back from its events."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from loop_helpers import mlp, stream
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

from everloop.contract import ACCURACY, RETURN, SCORE, Metric
from everloop.loop import (
    Board,
    Evaluation,
    Listener,
    Plan,
    Result,
    SupervisedLearner,
    Training,
    curves_figure,
    run,
    score_matrix_figure,
)
from everloop.loop.board import about, hyperparameters
from everloop.loop.result import MEASURES

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
        assert curve(events, f"score/{task}") == near([(e.step, e.scores[j]) for e in result.evaluations])


def test_every_tasks_forgetting_begins_when_its_training_has_ended(case: Case) -> None:
    result, keep, events = case
    for j, task in enumerate(result.tasks):
        lost = [(e.step, f[j]) for e, f in zip(result.evaluations[1:], keep.forgetting, strict=True)]
        expected = [(step, value) for step, value in lost if value is not None]
        assert (f"forgetting/{task}" in events.Tags()["scalars"]) == (j < 3)
        if j < 3:
            assert curve(events, f"forgetting/{task}") == near(expected)
            assert expected[0][0] >= 80 * (j + 1)


def test_the_averages_are_over_the_tasks_seen_so_far_at_every_evaluation(case: Case) -> None:
    """Computed from the tasks' own curves: task k is seen from step 80 k on, and forgets once the next one has begun."""
    result, _, events = case
    scores = {j: dict(curve(events, f"score/{task}")) for j, task in enumerate(result.tasks)}
    lost = {j: dict(curve(events, f"forgetting/{task}")) for j, task in enumerate(result.tasks[:3])}
    steps = [e.step for e in result.evaluations[1:]]
    for step in steps:
        phase = (step - 1) // 80
        assert dict(curve(events, "average/score"))[step] == pytest.approx(
            sum(scores[j][step] for j in range(phase + 1)) / (phase + 1), abs=1e-4
        )
        if phase:
            assert dict(curve(events, "average/forgetting"))[step] == pytest.approx(
                sum(lost[j][step] for j in range(phase)) / phase, abs=1e-4
            )
    assert len(curve(events, "average/score")) == len(steps)


def test_at_the_end_the_curves_are_the_results_own_numbers(case: Case) -> None:
    result, _, events = case
    assert curve(events, "average/forgetting")[-1:] == near([(240, result.forgetting or 0.0)])
    for name, value in result.measures().items():
        if value is not None:
            assert curve(events, f"measures/{name}")[-1:] == near([(240, value)])
    assert [step for step, _ in curve(events, "measures/average_score")] == [80, 160, 240]
    assert [curve(events, f"score/{task}")[-1][1] for task in result.tasks] == pytest.approx(result.scores[-1], abs=1e-4)


def test_the_task_index_is_a_step_from_phase_to_phase(case: Case) -> None:
    _, _, events = case
    assert curve(events, "task/index") == [(0, 0), (80, 0), (80, 1), (160, 1), (160, 2), (240, 2)]


def test_divergence_has_a_curve_for_every_ended_task_and_module(case: Case) -> None:
    result, keep, events = case
    tags = {tag for tag in events.Tags()["scalars"] if tag.startswith("divergence/")}
    parts = {f"{kind}/{task}/layers" for kind in ("kl", "weights") for task in result.tasks[:3]}
    assert tags == {f"divergence/{part}" for part in parts | {f"kl/{task}/network" for task in result.tasks[:3]}}
    for tag in tags:
        name = tag.removeprefix("divergence/")
        values = [(e.step, d[name]) for e, d in zip(result.evaluations[1:], keep.divergences, strict=True) if name in d]
        assert curve(events, tag) == near(values)


def charts(events: EventAccumulator) -> dict[str, dict[str, list[str]]]:
    """Category -> chart -> its regular expressions."""
    (event,) = events.Tensors("custom_scalars__config__")
    layout = Layout.FromString(event.tensor_proto.string_val[0])
    return {category.title: {chart.title: list(chart.multiline.tag) for chart in category.chart} for category in layout.category}


NAMES = ["C++", "plant-1", "plant-10", "a(b", "x/y", "score", "$5"]


def named(metric: Metric = ACCURACY, names: list[str] = NAMES) -> Result:
    """A run of tasks with these names, over."""
    zeros = [0.0] * len(names)
    ends = [Evaluation(10 * (i + 1), i, True, [float(i)] * len(names), list(zeros)) for i in range(len(names))]
    first = Evaluation(0, None, False, list(zeros), list(zeros))
    return Result(names, [[i] for i in range(len(names))], metric, [first, *ends], scenario="made-up", strategies=["ewc"], seed=1)


def replayed(folder: Path, result: Result, settings: dict[str, Any] | None = None) -> EventAccumulator:
    """The board of a run that went as `result` says."""
    board, evaluations = Board(folder, settings, "everloop run made-up"), result.evaluations
    result.evaluations = evaluations[:1]
    board.on_begin(result, 100)
    for i, now in enumerate(evaluations[1:]):
        board.on_phase(result, i)
        result.evaluations = evaluations[: i + 2]
        result.steps = now.step
        board.on_evaluation(result, {})
    board.on_end(result)
    return read(folder)


def test_a_chart_draws_one_curve_whatever_the_tasks_are_called(tmp_path: Path) -> None:
    """TensorBoard matches a chart's expressions from the beginning of each tag."""
    events = replayed(tmp_path, named())
    tags = events.Tags()["scalars"]
    assert {f"score/{name}" for name in NAMES} <= set(tags)
    (category,) = charts(events).items()
    assert category[0] == "made-up"
    drawn = [[tag for tag in tags if re.match(expression, tag)] for (expression,) in category[1].values()]
    assert drawn == [["average/score"], ["average/forgetting"], *([f"measures/{name}"] for name in MEASURES), ["task/index"]]
    assert "average accuracy of the tasks seen so far (%)" in category[1]
    assert "after each task: forgetting (points)" in category[1]


@pytest.mark.parametrize(
    ("metric", "title"), [(SCORE, "average score of"), (RETURN, "average return of"), (Metric("entity F1", "%"), "average entity F1 of")]
)
def test_charts_and_card_speak_of_the_runs_own_metric(metric: Metric, title: str, tmp_path: Path) -> None:
    events = replayed(tmp_path, named(metric))
    assert any(chart.startswith(title) for chart in charts(events)["made-up"])
    card = events.Tensors("about/text_summary")[0].tensor_proto.string_val[0].decode()
    assert ("reference(task)" in card) == (metric == RETURN)
    assert "    everloop run made-up" in card


def test_the_card_holds_settings_that_do_not_break_its_table() -> None:
    text = about(named(), "x", {"a": "p|q", "training": {"rate": 0.5}, "b": "line\nbreak"}, "everloop run")
    assert "| a | p\\|q |" in text
    assert "| training.rate | 0.5 |" in text
    assert "| b | line break |" in text


def test_pictures_come_at_least_after_each_phase_and_not_at_the_cost_of_the_run(case: Case) -> None:
    _, _, events = case
    for tag in ("score matrix", "curves of all tasks"):
        images = events.Images(tag)
        assert {80, 160, 240} <= {image.step for image in images}
        assert all(image.encoded_image_string.startswith(b"\x89PNG") for image in images)
        assert len({image.encoded_image_string for image in images}) == len(images)
    assert [image.step for image in events.Images("score matrix")] == [80, 160, 240]


def test_hyperparameters_stand_in_the_run_itself_with_the_same_keys_in_all_runs(tmp_path: Path) -> None:
    settings = {
        "ewc": {"strategies": ["ewc"], "seed": 0, "training": {"rate": 0.5}, "data": None, "names": ["a", 1], "ewc": {"strength": 3.0}},
        "none": {"strategies": ["none"], "seed": 1, "training": {"rate": 0.25}, "data": "x", "names": []},
    }
    found = {name: hyperparameters(values) for name, values in settings.items()}
    assert set(found["ewc"]) == set(found["none"])
    assert found["ewc"] == {
        "strategies": "ewc",
        "seed": 0,
        "training.rate": 0.5,
        "data": "None",
        "names": "a+1",
        "strategy settings": "ewc.strength=3.0",
    }
    events = replayed(tmp_path / "run", named(), settings["ewc"])
    parts = ("experiment", "session_start_info", "session_end_info")
    assert set(events.PluginTagToContent("hparams")) == {f"_hparams_/{part}" for part in parts}
    assert [path.name for path in (tmp_path / "run").iterdir() if path.is_dir()] == []


def test_numbers_about_training_are_written_under_their_names(tmp_path: Path) -> None:
    board = Board(tmp_path)
    board.on_scalars(32, {"train/loss": 0.5, "rollout/ep_rew_mean": -2.0})
    board.on_scalars(64, {"train/loss": 0.25})
    board.close()
    board.close()
    events = read(tmp_path)
    assert curve(events, "train/loss") == [(32, 0.5), (64, 0.25)]
    assert curve(events, "rollout/ep_rew_mean") == [(32, -2.0)]


def begun(tmp_path: Path, phases: list[list[int]]) -> tuple[Board, Result]:
    board, result = Board(tmp_path), Result(["a", "b"], phases, SCORE, [Evaluation(0, None, False, [0.0, 0.25], [0.0, 0.25])])
    board.on_begin(result, 100)
    return board, result


def test_what_happened_can_be_read_while_the_run_goes_on(tmp_path: Path) -> None:
    board, result = begun(tmp_path, [[0], [1]])
    result.evaluations.append(Evaluation(10, 0, False, [0.5, 0.125], []))
    board.on_evaluation(result, {"kl/a/network": 0.75})
    events = read(tmp_path)
    assert curve(events, "score/a") == [(0, 0.0), (10, 0.5)]
    assert curve(events, "divergence/kl/a/network") == [(10, 0.75)]
    assert [image.step for image in events.Images("curves of all tasks")] == [10]
    board.close()


def test_measures_that_are_unknown_are_not_written(tmp_path: Path) -> None:
    board, result = begun(tmp_path, [[0, 1]])
    result.evaluations.append(Evaluation(10, 0, True, [0.5, 1.0], []))
    board.on_evaluation(result, {})
    board.on_end(result)
    tags = read(tmp_path).Tags()["scalars"]
    assert "average/score" in tags
    assert not {"average/forgetting", "measures/forgetting", "measures/backward_transfer"} & set(tags)


def test_a_folder_that_can_not_be_written_is_an_error_of_the_one_who_writes(tmp_path: Path) -> None:
    """No thread of TensorBoard's own breaks down later, with a traceback of its own."""
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        Board(tmp_path / "file")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which is always full")
def test_a_full_disk_is_an_error_of_the_one_who_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("wb", buffering=0) as full:
        monkeypatch.setattr(Path, "open", lambda path, mode: full)
        with pytest.raises(OSError, match="No space left"):
            Board(tmp_path)


def texts(figure: Figure, axes: int = 0) -> list[str]:
    return [text.get_text() for text in figure.axes[axes].texts]


def two(metric: Metric, rows: list[list[float]], phases: list[list[int]], names: list[str]) -> Result:
    evaluations = [Evaluation(10 * i, i - 1 if i else None, i > 0, row, []) for i, row in enumerate(rows)]
    return Result(names, phases, metric, evaluations)


def test_the_figure_shows_every_number_and_name() -> None:
    result = two(SCORE, [[0.0, -0.125], [0.875, 0.25], [0.5, float("nan")]], [[0], [1]], ["zero", "_one $"])
    figure = score_matrix_figure({"plain": result})
    axes = figure.axes[0]
    assert texts(figure) == ["0.00", "-0.12", "0.88", "0.25", "0.50"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["zero", r" _one \$"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["before", "after zero", r"after  _one \$"]
    assert axes.get_title() == "plain"
    assert [text.get_position() for text in axes.texts] == [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2)]


@pytest.mark.parametrize(("metric", "limits"), [(ACCURACY, (0, 100)), (SCORE, (-1, 1)), (RETURN, (-30, 500))])
def test_colours_mean_the_same_in_all_matrices_of_a_metric(metric: Metric, limits: tuple[float, float]) -> None:
    result = two(metric, [[-30.0, 0.0], [500.0, 0.0]], [[0]], ["a", "b"])
    assert score_matrix_figure({"": result}).axes[0].images[0].get_clim() == pytest.approx(limits)


def test_several_results_stand_side_by_side() -> None:
    a = two(SCORE, [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [[0], [1]], ["x", "y"])
    b = two(SCORE, [[0.0, 0.0], [0.75, 0.5]], [[0, 1]], ["x", "y"])
    figure = score_matrix_figure({"none": a, "joint": b})
    assert [axes.get_title() for axes in figure.axes[:2]] == ["none", "joint"]
    assert texts(figure, 1) == ["0.00", "0.00", "0.75", "0.50"]


@pytest.mark.parametrize("count", [2, 10, 20, 50])
def test_every_task_has_a_line_of_its_own_colour_with_its_name(count: int) -> None:
    names = [f"task {i}" for i in range(count)]
    figure = curves_figure(named(names=names), "made-up")
    axes, legend = figure.axes[0], figure.legends[0]
    lines = [line for line in axes.lines if line.get_label() in names]
    assert [line.get_label() for line in lines] == [text.get_text() for text in legend.get_texts()] == names
    assert len({tuple(line.get_color()) for line in lines}) == count
    for j, line in enumerate(lines):
        assert list(line.get_xdata()) == [10 * i for i in range(count + 1)]
        assert list(line.get_ydata()) == [0.0, *map(float, range(count))], names[j]
    marks = sorted(line.get_xdata()[0] for line in axes.lines if line.get_label() not in names)
    assert marks == [10 * i for i in range(count)]
    assert axes.get_title() == "made-up"
    assert axes.get_ylabel() == "accuracy (%)"


@pytest.mark.parametrize(("count", "name"), [(5, "{0}"), (20, "a task with a long name {0}"), (50, "task {0}")])
def test_no_label_is_cut_off(count: int, name: str) -> None:
    result = named(names=[name.format(i) for i in range(count)])
    for figure in (curves_figure(result, "a scenario and its strategies"), score_matrix_figure({"a scenario": result})):
        figure.canvas.draw()
        renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
        width, height = figure.get_size_inches() * figure.dpi
        for axes in figure.axes:
            box = axes.get_tightbbox(renderer)
            assert box is not None
            assert -2 <= box.x0 <= box.x1 <= width + 2
            assert -2 <= box.y0 <= box.y1 <= height + 2
        for legend in figure.legends:
            box = legend.get_window_extent(renderer)
            assert box.y0 >= -2
            assert box.x1 <= width + 2
