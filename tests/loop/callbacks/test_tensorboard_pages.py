"""Custom Scalars, images, HParams and the text card of a run, read from its events."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from loop_helpers import run_of
from result_helpers import finished_result
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2
from tensorboard_helpers import SPECIAL_NAMES, Case, curve, near, read, replay

from everloop.contract import ACCURACY, RETURN, SCORE, Metric
from everloop.loop import Evaluation, Result, TensorBoardLogger
from everloop.loop.callbacks import tensorboard
from everloop.loop.callbacks.curves import charts, titles


def layout_of(events: EventAccumulator) -> Layout:
    """The layout of the Custom Scalars page."""
    (event,) = events.Tensors("custom_scalars__config__")
    return Layout.FromString(event.tensor_proto.string_val[0])


def test_each_measure_has_a_chart_with_its_unit(case: Case) -> None:
    (category,) = layout_of(case.events).category
    assert category.title == "digits"
    assert [chart.title for chart in category.chart] == [
        "average accuracy (%)",
        "forgetting (percentage points)",
        "average incremental accuracy (%)",
        "backward transfer (percentage points)",
        "one-step backward transfer (percentage points)",
        "learning accuracy (%)",
        "anytime accuracy (%)",
        "min-ACC (%)",
        "worst-case accuracy, WC-ACC (%)",
        "online accuracy (%)",
    ]


def test_every_chart_draws_one_curve_per_run(case: Case) -> None:
    tags = case.events.Tags()["scalars"]
    drawn = []
    for chart in layout_of(case.events).category[0].chart:
        (regex,) = chart.multiline.tag  # charts of different runs merge only if they have one
        drawn.append([tag for tag in tags if re.match(regex, tag)])
    assert [len(tags) for tags in drawn] == [1] * 10
    assert drawn[0] == ["average/digits/score"]
    assert drawn[1] == ["average/digits/forgetting"]
    assert drawn[6] == ["measures/digits/anytime_score"]


@pytest.mark.parametrize("scenario", SPECIAL_NAMES)
def test_a_chart_matches_only_the_tags_of_its_own_scenario(scenario: str) -> None:
    results = [
        Result(["a"], [[0]], ACCURACY, scenario=name) for name in [*SPECIAL_NAMES, "plant-1+"]
    ]
    tags = {r.scenario: f"average/{r.scenario.replace('(', '[')}/score" for r in results}
    regex = charts(results[SPECIAL_NAMES.index(scenario)])["average accuracy (%)"]
    assert [name for name, tag in tags.items() if re.match(regex, tag)] == [scenario]
    assert not re.match(regex, f"{tags[scenario]}/0")
    assert not re.match(regex, f"{tags[scenario]}\n")


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


def test_figures_are_drawn_at_each_evaluation_if_the_budget_allows(case: Case) -> None:
    steps = [event.step for event in case.events.Images("learning curves")]
    assert steps == [e.step for e in case.result.evaluations[1:]]
    matrices = case.events.Images("score matrix")
    assert [image.step for image in matrices] == [80, 160, 240]
    assert len({image.encoded_image_string for image in matrices}) == 3


def test_a_short_run_draws_each_figure_once_at_its_end(tmp_path: Path) -> None:
    replay(
        finished_result(["a", "b"], [[0.0, 0.0], [90.0, 0.0], [50.0, 80.0]]),
        TensorBoardLogger(tmp_path),
    )
    events = read(tmp_path)
    for tag in ("learning curves", "score matrix"):
        assert [image.step for image in events.Images(tag)] == [20]


def test_half_of_the_drawing_budget_is_for_the_ends_of_phases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(tensorboard.time, "perf_counter", lambda: clock[0])
    result = finished_result(["a", "b"], [[0.0, 0.0]], [[0], [1]] * 5)
    logger = TensorBoardLogger(tmp_path)
    logger.on_run_begin(run_of(result))

    def drawn_at(seconds: float, ends_phase: bool) -> list[str]:
        clock[0] = seconds
        result.evaluations.append(Evaluation(int(seconds), 0, ends_phase, [1.0, 1.0], [1.0, 1.0]))
        before = dict(logger._drawn)
        logger._draw_in_budget(result)
        return [tag for tag, count in logger._drawn.items() if before.get(tag) != count]

    assert drawn_at(19, True) == []  # the first drawing is expected to take 1 s
    assert drawn_at(39, False) == []
    assert drawn_at(41, False) == ["learning curves"]
    assert drawn_at(42, True) == ["learning curves", "score matrix"]
    logger._spent = 2.0
    assert drawn_at(50, False) == []
    assert drawn_at(39, True) == []
    assert drawn_at(41, True) == ["learning curves", "score matrix"]
    logger.close()


def hparams(events: EventAccumulator) -> dict[str, Any]:
    """The data of the HParams page, by kind."""
    found = {}
    for tag in events.PluginTagToContent("hparams"):
        content = events.SummaryMetadata(tag).plugin_data.content
        data = plugin_data_pb2.HParamsPluginData.FromString(content)
        found[data.WhichOneof("data")] = getattr(data, data.WhichOneof("data"))
    return found


def test_hparams_contain_settings_and_refer_to_measures(case: Case) -> None:
    found = hparams(case.events)
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
    assert len(metrics) == 12
    final = case.numbers.measures[-1]
    for tag in metrics:
        value = final[tag.removeprefix("measures/digits/")]
        if value is not None:
            assert curve(case.events, tag)[-1:] == near([(240, value)])
    assert found["session_end_info"].status == api_pb2.STATUS_SUCCESS


def test_runs_of_a_scenario_have_the_same_hparams(tmp_path: Path) -> None:
    keys = []
    for name, strategies in (("a", ["none"]), ("b", ["ewc", "replay"])):
        result = finished_result(["x"], [[0.0], [50.0]])
        result.strategies = strategies
        settings = {"lr": 0.1 if name == "a" else None, "training": {"device": "cpu"}}
        replay(result, TensorBoardLogger(tmp_path / name, settings))
        found = hparams(read(tmp_path / name))
        infos = [info.name for info in found["experiment"].hparam_infos]
        assert sorted(infos) == sorted(found["session_start_info"].hparams)
        keys.append((infos, [info.name.tag for info in found["experiment"].metric_infos]))
    assert keys[0] == keys[1]
    assert keys[0][0] == ["scenario", "strategies", "seed", "lr", "training.device"]


def test_an_interrupted_run_is_marked_as_failed_and_has_figures(tmp_path: Path) -> None:
    broken = TensorBoardLogger(tmp_path)
    result = finished_result(["x", "y"], [[0.0, 0.0], [50.0, 0.0]])
    broken.on_run_begin(run_of(result))
    broken.close()
    broken.close()
    events = read(tmp_path)
    assert hparams(events)["session_end_info"].status == api_pb2.STATUS_FAILURE
    assert [image.step for image in events.Images("score matrix")] == [10]


def test_the_text_card_explains_the_run(case: Case) -> None:
    (event,) = case.events.Tensors("about")
    text = event.tensor_proto.string_val[0].decode()
    assert "# digits: ewc, replay" in text
    assert "`everloop run digits`" in text
    assert "| `epochs` | `1` |" in text
