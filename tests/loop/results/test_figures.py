"""Figures of results show every number and name, and cut nothing off."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
from matplotlib.figure import Figure
from result_helpers import finished_result

from everloop.contract import ACCURACY, RETURN, SCORE, Metric
from everloop.loop import Result, score_matrix_figure
from everloop.loop.results.figures import heading, learning_curves_figure, quantity

NAN = float("nan")
NAMES = ["C++", "plant-1", "a(b", "x/y", "$\\frac$", "a$b$c", "_hidden", "two\nlines", "W" * 90, ""]


def random_result(tasks: int, metric: Metric = ACCURACY, name: str = "task {}") -> Result:
    """A result of `tasks` tasks, trained one after another, with random scores."""
    rng = np.random.default_rng(0)
    names = [name.format(j) for j in range(tasks)]
    rows = (100 * rng.random((tasks + 1, tasks))).tolist()
    return finished_result(names, rows, metric=metric)


def texts(figure: Figure, axes: int = 0) -> list[str]:
    return [text.get_text() for text in figure.axes[axes].texts]


def overhang(figure: Figure) -> float:
    """How far, in inches, anything extends beyond the figure; 0 or less if nothing is cut off."""
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    return float(max(-box.x0, -box.y0, box.x1 - width, box.y1 - height))


def test_the_matrix_shows_every_number_and_name() -> None:
    result = finished_result(
        ["zero", "one"], [[0.0, -0.125], [0.875, 0.25], [0.5, NAN]], metric=SCORE
    )
    figure = score_matrix_figure({"plain": result})
    axes = figure.axes[0]
    assert texts(figure) == ["0.00", "-0.12", "0.88", "0.25", "0.50", "-"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["zero", "one"]
    rows = [label.get_text() for label in axes.get_yticklabels()]
    assert rows == ["before training", "after zero", "after one"]
    assert axes.get_title() == "plain"
    positions = [text.get_position() for text in axes.texts]
    assert positions == [(j, i) for i in range(3) for j in range(2)]


def test_phases_of_several_tasks_have_row_names() -> None:
    scores = [[0.0] * 3, [1.0] * 3, [1.0] * 3]
    result = finished_result(["a", "b", "c"], scores, [[0, 1, 2], [0, 2]])
    rows = score_matrix_figure({"": result}).axes[0].get_yticklabels()
    assert [row.get_text() for row in rows][1:] == ["after all tasks", "after phase 2"]


@pytest.mark.parametrize(
    ("metric", "span", "label"),
    [
        (ACCURACY, (0.0, 100.0), "accuracy (%)"),
        (SCORE, (-1.0, 1.0), "score"),
        (RETURN, (-7.0, 3.0), "return"),
    ],
)
def test_the_colours_span_the_range_of_the_metric(
    metric: Metric,
    span: tuple[float, float],
    label: str,
) -> None:
    a = finished_result(["x"], [[-7.0], [NAN]], metric=metric)
    b = finished_result(["x"], [[1.0], [3.0]], metric=metric)
    figure = score_matrix_figure({"a": a, "b": b})
    panels = [axes for axes in figure.axes if axes.images]
    assert [axes.images[0].get_clim() for axes in panels] == [span, span]
    assert [bar.get_ylabel() for bar in figure.axes if not bar.images] == [label, label]


def test_results_in_different_units_appear_side_by_side() -> None:
    a = finished_result(["x", "y"], [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], metric=SCORE)
    b = finished_result(["u", "v", "w"], [[0.0] * 3, [75.0, 50.0, 25.0]], [[0, 1, 2]])
    figure = score_matrix_figure({"none": a, "joint": b})
    panels = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in panels] == ["none", "joint"]
    assert [t.get_text() for t in panels[1].texts] == ["0.0"] * 3 + ["75.0", "50.0", "25.0"]
    assert [axes.images[0].get_clim() for axes in panels] == [(-1, 1), (0, 100)]


def test_learning_curves_show_each_task_and_mark_the_phases() -> None:
    result = finished_result(["a", "b"], [[5.0, 0.0], [90.0, NAN], [50.0, 80.0]])
    result.scenario, result.strategies = "digits", ["ewc", "replay"]
    figure = learning_curves_figure(result)
    (axes,) = figure.axes
    tasks, marks = axes.lines[:2], axes.lines[2:]
    np.testing.assert_array_equal(tasks[0].get_data(), [[0, 10, 20], [5, 90, 50]])
    np.testing.assert_array_equal(tasks[1].get_data(), [[0, 10, 20], [0, NAN, 80]])
    assert [mark.get_xdata()[0] for mark in marks] == [0, 10]
    assert texts(figure) == ["a", "b"]
    assert [text.get_position()[0] for text in axes.texts] == [0, 10]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("world steps", "accuracy (%)")
    assert figure.texts[0].get_text() == "digits: ewc, replay" == heading(result)


def test_forty_tasks_have_different_line_styles() -> None:
    lines = learning_curves_figure(random_result(40)).axes[0].lines[:40]
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 40


@pytest.mark.parametrize("tasks", [1, 2, 5, 20, 50, 100])
@pytest.mark.parametrize("name", ["{}", "comp.sys.{}.a long name of it"])
def test_nothing_is_cut_off(tasks: int, name: str) -> None:
    result = random_result(tasks, name=name)
    result.scenario, result.strategies = "a-long-scenario-name", ["ewc", "replay", "derpp", "lwf"]
    assert overhang(learning_curves_figure(result)) <= 0
    assert overhang(score_matrix_figure({heading(result): result, "other": result})) <= 0


@pytest.mark.parametrize("metric", [ACCURACY, RETURN, SCORE])
def test_special_characters_in_names_are_shown_literally(metric: Metric) -> None:
    result = random_result(len(NAMES), metric)
    result.tasks = NAMES
    for figure in (learning_curves_figure(result), score_matrix_figure({"$x$ \\frac": result})):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            figure.savefig(io.BytesIO(), format="png")
        assert overhang(figure) <= 0
    legend = learning_curves_figure(result).axes[0].get_legend()
    shown = [text.get_text().replace(r"\$", "$").strip() for text in legend.get_texts()]
    assert shown == [*NAMES[:7], "two lines", "W" * 39 + "…", ""]


def test_numbers_have_enough_contrast_to_their_colours() -> None:
    values = [0.0, 10.0, 50.0, 90.0, 100.0]
    axes = score_matrix_figure({"": finished_result(["a"] * 5, [values], [])}).axes[0]
    for value, text in zip(values, axes.texts, strict=True):
        luminance = [0.2126, 0.7152, 0.0722] @ np.array(axes.images[0].to_rgba(value)[:3]) ** 2.2
        text_luminance = 1.0 if text.get_color() == "white" else 0.0
        dark, light = sorted((luminance, text_luminance))
        assert (light + 0.05) / (dark + 0.05) > 3.0  # the contrast that WCAG 2 asks for


def test_a_quantity_includes_its_unit() -> None:
    assert quantity(Metric("entity F1", "%")) == "entity F1 (%)"
    assert quantity(RETURN) == "return"
