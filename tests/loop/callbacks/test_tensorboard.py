"""What a run leaves in TensorBoard, read back from its events."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
from loop_helpers import mlp, run_of, stream
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2

from everloop.contract import ACCURACY, RETURN, SCORE, Metric
from everloop.loop import (
    Board,
    Callback,
    Divergence,
    Evaluation,
    Plan,
    Result,
    Run,
    SupervisedLearner,
    Training,
)
from everloop.loop.callbacks import tensorboard
from everloop.loop.callbacks.curves import average_forgetting, charts, titles

EVERYTHING = {"scalars": 0, "images": 0, "tensors": 0}
AWKWARD = ["C++", "plant-1", "plant-10", "a(b", "x/y"]


class Keep(Callback):
    """Names the run, and keeps what is known at each evaluation."""

    def __init__(self) -> None:
        self.divergences: list[dict[str, float]] = []
        self.heard: dict[str, float] = {}
        self.forgetting: list[list[float | None]] = []
        self.averages: list[tuple[float | None, float | None]] = []
        self.measures: list[dict[str, float | None]] = []

    def on_run_begin(self, run: Run) -> None:
        run.result.scenario, run.result.strategies, run.result.seed = "digits", ["ewc", "replay"], 3

    def on_log(self, run: Run, scalars: dict[str, float]) -> None:
        self.heard = scalars

    def on_evaluation(self, run: Run) -> None:
        result = run.result
        self.divergences.append(self.heard)
        self.heard = {}
        self.forgetting.append(result.forgetting_now())
        self.averages.append((result.average_now(), average_forgetting(result)))
        if result.evaluations[-1].ends_phase:
            self.measures.append(result.measures())


Case = tuple[Result, Keep, EventAccumulator]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Three of five tasks of digits, evaluated four times each, with every picture drawn."""
    folder, keep = tmp_path_factory.mktemp("board"), Keep()
    learner = SupervisedLearner(mlp(), stream(), Training(1e-2))
    plan = Plan([[0], [1], [2]], [80] * 3, eval_every=24, consolidation_steps=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensorboard, "DRAWING", math.inf)
        callbacks = [Divergence(), keep, Board(folder, {"epochs": 1}, "everloop run digits")]
        result = Run(learner, plan, stream(16, split="test"), stream(), [], callbacks).go()
    return result, keep, read(folder)


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), EVERYTHING)
    events.Reload()
    return events


def curve(events: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events.Scalars(tag)]


def near(points: list[tuple[int, float | None]]) -> list[tuple[int, Any]]:
    """The known points; TensorBoard keeps single precision."""
    known = [(step, value) for step, value in points if value is not None]
    return [(step, pytest.approx(value, rel=1e-6, abs=1e-6)) for step, value in known]


def made(
    names: list[str],
    scores: list[list[float]],
    phases: list[list[int]] | None = None,
    metric: Metric = ACCURACY,
) -> Result:
    """A result with one evaluation before training, and one at the end of each of its phases."""
    result = Result(names, phases or [[j] for j in range(len(names))], metric, scenario="made")
    for i, row in enumerate(scores):
        phase = i - 1 if i else None
        result.evaluations.append(Evaluation(10 * i, phase, phase is not None, row, row))
    return result


def replay(result: Result, board: Board) -> None:
    """Tell `board` of all evaluations in order, as a run would."""
    everything, result.evaluations, result.steps = result.evaluations, result.evaluations[:1], 0
    board.on_run_begin(run_of(result))
    for phase, now in enumerate(everything[1:]):
        board.on_phase_begin(run_of(result, phase=phase))
        result.evaluations.append(now)
        result.steps = now.step
        board.on_evaluation(run_of(result, now.step))
    board.on_run_end(run_of(result))


def test_every_tasks_score_is_a_curve_over_all_steps_from_step_0(case: Case) -> None:
    result, _, events = case
    for j, task in enumerate(result.tasks):
        expected = [(e.step, e.scores[j]) for e in result.evaluations]
        assert expected[0] == (0, result.before[j])
        assert curve(events, f"score/{task}") == near(expected)


def test_every_tasks_forgetting_begins_when_its_training_has_ended(case: Case) -> None:
    result, keep, events = case
    for j, task in enumerate(result.tasks):
        steps = [e.step for e in result.evaluations[1:]]
        expected = list(zip(steps, [lost[j] for lost in keep.forgetting], strict=True))
        assert (f"forgetting/{task}" in events.Tags()["scalars"]) == (j < 3)
        if j < 3:
            assert curve(events, f"forgetting/{task}") == near(expected)
            assert curve(events, f"forgetting/{task}")[0][0] >= 80 * (j + 1)


def test_averages_are_written_at_every_evaluation(case: Case) -> None:
    result, keep, events = case
    steps = [e.step for e in result.evaluations[1:]]
    scores, lost = ([pair[i] for pair in keep.averages] for i in (0, 1))
    assert len(steps) == 12
    assert None not in scores
    assert curve(events, "average/digits/score") == near(list(zip(steps, scores, strict=True)))
    assert curve(events, "average/digits/forgetting") == near(list(zip(steps, lost, strict=True)))
    assert len(curve(events, "average/digits/forgetting")) == 8  # the first task's phase has none


def test_after_a_phase_the_averages_are_the_measures(case: Case) -> None:
    _, keep, events = case
    for step, measures in zip((80, 160, 240), keep.measures, strict=True):
        score = dict(curve(events, "average/digits/score"))[step]
        assert score == pytest.approx(measures["average_score"], abs=1e-5)
        lost = dict(curve(events, "average/digits/forgetting")).get(step)
        assert lost == pytest.approx(measures["forgetting"], abs=1e-5)


def test_a_task_that_is_trained_again_is_left_out_of_the_average_forgetting() -> None:
    scores = [[0.0, 0.0], [90.0, 0.0], [30.0, 80.0], [85.0, 50.0]]
    result = made(["a", "b"], scores, [[0], [1], [0]])
    assert result.forgetting_now() == [5.0, 30.0]
    assert average_forgetting(result) == 30.0 == result.forgetting


def test_measures_are_written_after_each_phase(case: Case) -> None:
    _, keep, events = case
    for name in keep.measures[0]:
        points = [(80 * (i + 1), values[name]) for i, values in enumerate(keep.measures)]
        assert curve(events, f"measures/digits/{name}") == near(points)
    assert len(curve(events, "measures/digits/forgetting")) == 2
    assert len(curve(events, "measures/digits/average_score")) == 3


def test_the_task_in_training_is_a_curve_with_steps(case: Case) -> None:
    _, _, events = case
    steps = [(0, 0), (80, 0), (80, 1), (160, 1), (160, 2), (240, 2)]
    assert curve(events, "task/index") == steps


def test_a_phase_of_several_tasks_has_no_task_number(tmp_path: Path) -> None:
    replay(made(["a", "b"], [[0.0, 0.0], [50.0, 100.0]], [[0, 1]]), Board(tmp_path))
    assert "task/index" not in read(tmp_path).Tags()["scalars"]


def test_divergence_has_a_curve_for_every_ended_task_and_module(case: Case) -> None:
    result, keep, events = case
    tags = {tag for tag in events.Tags()["scalars"] if tag.startswith("divergence/")}
    kinds = [("kl", "layers"), ("weights", "layers"), ("kl", "network")]
    ended = result.tasks[:3]
    assert tags == {f"divergence/{kind}/{task}/{part}" for kind, part in kinds for task in ended}
    for tag in tags:
        seen = zip(result.evaluations[1:], keep.divergences, strict=True)
        assert curve(events, tag) == near([(e.step, d.get(tag)) for e, d in seen])


def layout_of(events: EventAccumulator) -> Layout:
    (event,) = events.Tensors("custom_scalars__config__")
    return Layout.FromString(event.tensor_proto.string_val[0])


def test_each_measure_has_a_chart_in_the_scenarios_category_that_says_what_and_in_which_unit(
    case: Case,
) -> None:
    _, _, events = case
    (category,) = layout_of(events).category
    assert category.title == "digits"
    assert [chart.title for chart in category.chart] == [
        "average accuracy (%)",
        "forgetting (percentage points)",
        "average incremental accuracy (%)",
        "backward transfer (percentage points)",
        "forward transfer (percentage points)",
        "learning accuracy (%)",
        "anytime accuracy (%)",
    ]


def test_every_chart_draws_one_curve_of_a_run(case: Case) -> None:
    _, _, events = case
    tags = events.Tags()["scalars"]
    drawn = []
    for chart in layout_of(events).category[0].chart:
        (regex,) = chart.multiline.tag  # charts of different runs merge only if they have one
        drawn.append([tag for tag in tags if re.match(regex, tag)])
    assert [len(tags) for tags in drawn] == [1] * 7
    assert drawn[0] == ["average/digits/score"]
    assert drawn[1] == ["average/digits/forgetting"]
    assert drawn[6] == ["measures/digits/anytime_score"]


@pytest.mark.parametrize("scenario", AWKWARD)
def test_a_chart_matches_the_tags_of_its_own_scenario_alone(scenario: str) -> None:
    results = [Result(["a"], [[0]], ACCURACY, scenario=name) for name in [*AWKWARD, "plant-1+"]]
    tags = {r.scenario: f"average/{r.scenario.replace('(', '[')}/score" for r in results}
    regex = charts(results[AWKWARD.index(scenario)])["average accuracy (%)"]
    assert [name for name, tag in tags.items() if re.match(regex, tag)] == [scenario]
    assert not re.match(regex, f"{tags[scenario]}/0")
    assert not re.match(regex, f"{tags[scenario]}\n")


def test_tasks_with_awkward_names_have_their_curves(tmp_path: Path) -> None:
    rows = [[10.0 * i + j for j in range(5)] for i in range(6)]
    replay(made(AWKWARD, rows), Board(tmp_path))
    events = read(tmp_path)
    for j, name in enumerate(AWKWARD):
        assert curve(events, f"score/{name}") == [(10 * i, row[j]) for i, row in enumerate(rows)]


@pytest.mark.parametrize(
    ("metric", "average", "forgetting"),
    [
        (Metric("entity F1", "%"), "average entity F1 (%)", "forgetting (percentage points)"),
        (SCORE, "average score (0 random, 1 best known)", "forgetting (score)"),
        (RETURN, "average return", "forgetting (return)"),
    ],
)
def test_titles_name_the_metric_and_its_unit(metric: Metric, average: str, forgetting: str) -> None:
    names = titles(metric)
    assert (names["average_score"], names["forgetting"]) == (average, forgetting)


def test_pictures_are_drawn_with_each_evaluation_if_there_is_time(case: Case) -> None:
    result, _, events = case
    steps = [event.step for event in events.Images("learning curves")]
    assert steps == [e.step for e in result.evaluations[1:]]
    matrices = events.Images("score matrix")
    assert [image.step for image in matrices] == [80, 160, 240]
    assert len({image.encoded_image_string for image in matrices}) == 3


def test_a_short_run_draws_each_picture_once_at_its_end(tmp_path: Path) -> None:
    replay(made(["a", "b"], [[0.0, 0.0], [90.0, 0.0], [50.0, 80.0]]), Board(tmp_path))
    events = read(tmp_path)
    for tag in ("learning curves", "score matrix"):
        assert [image.step for image in events.Images(tag)] == [20]


def test_drawing_takes_its_share_of_the_time_and_leaves_half_of_it_for_the_phases_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(tensorboard.time, "perf_counter", lambda: clock[0])
    result, made_board = made(["a", "b"], [[0.0, 0.0]], [[0], [1]] * 5), Board(tmp_path)
    made_board.on_run_begin(run_of(result))

    def drawn_at(seconds: float, ends_phase: bool) -> list[str]:
        clock[0] = seconds
        result.evaluations.append(Evaluation(int(seconds), 0, ends_phase, [1.0, 1.0], [1.0, 1.0]))
        before = dict(made_board._drawn)
        made_board._pictures(result)
        return [tag for tag, count in made_board._drawn.items() if before.get(tag) != count]

    assert drawn_at(19, True) == []  # the first drawing is reckoned to take 1 s
    assert drawn_at(39, False) == []
    assert drawn_at(41, False) == ["learning curves"]
    assert drawn_at(42, True) == ["learning curves", "score matrix"]
    made_board._spent = 2.0
    assert drawn_at(50, False) == []
    assert drawn_at(39, True) == []
    assert drawn_at(41, True) == ["learning curves", "score matrix"]
    made_board.close()


def hparams(events: EventAccumulator) -> dict[str, Any]:
    """kind -> content of what the HParams page reads."""
    found = {}
    for tag in events.PluginTagToContent("hparams"):
        content = events.SummaryMetadata(tag).plugin_data.content
        data = plugin_data_pb2.HParamsPluginData.FromString(content)
        found[data.WhichOneof("data")] = getattr(data, data.WhichOneof("data"))
    return found


def test_hparams_hold_the_settings_and_point_at_the_measures(case: Case) -> None:
    _, keep, events = case
    found = hparams(events)
    start = found["session_start_info"].hparams
    assert {name: value.WhichOneof("kind") for name, value in start.items()} == {
        "scenario": "string_value",
        "strategies": "string_value",
        "seed": "number_value",
        "epochs": "number_value",
    }
    assert (start["strategies"].string_value, start["seed"].number_value) == ("ewc, replay", 3.0)
    metrics = {info.name.tag: info.display_name for info in found["experiment"].metric_infos}
    assert metrics["measures/digits/average_score"] == "average accuracy (%)"
    assert len(metrics) == 7
    for tag in metrics:
        final = keep.measures[-1][tag.removeprefix("measures/digits/")]
        assert curve(events, tag)[-1:] == near([(240, final)])
    assert found["session_end_info"].status == api_pb2.STATUS_SUCCESS


def test_runs_of_a_scenario_have_the_same_hparams(tmp_path: Path) -> None:
    keys = []
    for name, strategies in (("a", ["none"]), ("b", ["ewc", "replay"])):
        result = made(["x"], [[0.0], [50.0]])
        result.strategies = strategies
        settings = {"lr": 0.1 if name == "a" else None, "training": {"device": "cpu"}}
        replay(result, Board(tmp_path / name, settings))
        found = hparams(read(tmp_path / name))
        infos = [info.name for info in found["experiment"].hparam_infos]
        assert sorted(infos) == sorted(found["session_start_info"].hparams)
        keys.append((infos, [info.name.tag for info in found["experiment"].metric_infos]))
    assert keys[0] == keys[1]
    assert keys[0][0] == ["scenario", "strategies", "seed", "lr", "training.device"]


def test_a_run_has_no_runs_below_it(tmp_path: Path) -> None:
    replay(made(["x"], [[0.0], [50.0]]), Board(tmp_path))
    assert len(list(tmp_path.rglob("*"))) == 1


def test_a_run_that_breaks_off_counts_as_failed_and_has_its_pictures(tmp_path: Path) -> None:
    broken, result = Board(tmp_path), made(["x", "y"], [[0.0, 0.0], [50.0, 0.0]])
    broken.on_run_begin(run_of(result))
    broken.close()
    broken.close()
    events = read(tmp_path)
    assert hparams(events)["session_end_info"].status == api_pb2.STATUS_FAILURE
    assert [image.step for image in events.Images("score matrix")] == [10]


def test_the_card_is_the_explanation_of_the_run(case: Case) -> None:
    _, _, events = case
    (event,) = events.Tensors("about")
    text = event.tensor_proto.string_val[0].decode()
    assert "# digits: ewc, replay" in text
    assert "`everloop run digits`" in text
    assert "| `epochs` | `1` |" in text


def test_numbers_about_training_are_written_under_their_names(tmp_path: Path) -> None:
    board = Board(tmp_path)
    result = made(["x"], [[0.0]])
    board.on_log(run_of(result, 32), {"train/loss": 0.5, "rollout/ep_rew_mean": -2.0})
    board.on_log(run_of(result, 64), {"train/loss": 0.25, "train/gradient_norm": math.nan})
    board.close()
    events = read(tmp_path)
    assert curve(events, "train/loss") == [(32, 0.5), (64, 0.25)]
    assert curve(events, "rollout/ep_rew_mean") == [(32, -2.0)]
    assert "train/gradient_norm" not in events.Tags()["scalars"]


def test_what_happened_can_be_read_while_the_run_goes_on(tmp_path: Path) -> None:
    board, result = Board(tmp_path), made(["a", "b"], [[0.0, 25.0]])
    board.on_run_begin(run_of(result))
    assert curve(read(tmp_path), "score/b") == [(0, 25.0)]
    result.evaluations.append(Evaluation(10, 0, False, [50.0, math.nan], [0.5, math.nan]))
    board.on_evaluation(run_of(result, 10))
    events = read(tmp_path)
    assert curve(events, "score/a") == [(0, 0.0), (10, 50.0)]
    assert curve(events, "score/b") == [(0, 25.0)]  # a task that was not measured has no point
    board.close()


def test_measures_that_are_unknown_are_not_written(tmp_path: Path) -> None:
    replay(made(["a", "b"], [[0.0, 0.0], [50.0, 100.0]], [[0, 1]]), Board(tmp_path))
    tags = read(tmp_path).Tags()["scalars"]
    assert "average/made/score" in tags
    assert "average/made/forgetting" not in tags
    assert "measures/made/forgetting" not in tags
