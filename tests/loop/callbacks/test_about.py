"""The text card that describes a run in TensorBoard."""

from __future__ import annotations

import math
import warnings

import pytest

from everloop.contract import ACCURACY, RETURN, SCORE, Metric
from everloop.loop import Result
from everloop.loop.callbacks.about import about, flattened
from everloop.loop.results.result import MEASURES

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its imports are deprecated
    from tensorboard.plugin_util import markdown_to_safe_html


def result(metric: Metric = ACCURACY, tasks: tuple[str, ...] = ("zero", "one")) -> Result:
    phases = [[j] for j in range(len(tasks))]
    return Result(list(tasks), phases, metric, scenario="digits", strategies=["ewc", "replay"])


def test_settings_are_flattened_to_bools_numbers_and_strings() -> None:
    settings = {
        "a": True,
        "b": 3,
        "training": {"rate": 0.5, "deep": {"x": None}},
        "tasks": ["p", "q"],
        "periods": (1, 8),
        "empty": {},
        "infinite": math.inf,
    }
    assert flattened(settings) == {
        "a": True,
        "b": 3.0,
        "training.rate": 0.5,
        "training.deep.x": "None",
        "tasks": "p, q",
        "periods": "1, 8",
        "empty": "{}",
        "infinite": "inf",
    }
    assert {type(value) for value in flattened(settings).values()} == {bool, float, str}


def test_the_card_names_every_curve() -> None:
    text = about(result(), {}, "")
    for name in MEASURES:
        assert (f"`measures/digits/{name}`" in text) == (name != "online_return")
    for name in (
        "score/<task>",
        "forgetting/<task>",
        "average/digits/score",
        "average/digits/forgetting",
        "task/index",
        "divergence/kl/<task>/<module>",
        "divergence/weights/<task>/<module>",
    ):
        assert f"`{name}`" in text
    assert "0 `zero`, 1 `one`" in text
    assert "accuracy (%)" in text
    assert "percentage points" in text


def test_the_card_of_a_return_tells_how_to_get_scores() -> None:
    advice = "`reference(task) -> (random, best)`"
    assert advice in about(result(RETURN), {}, "")
    assert advice not in about(result(SCORE), {}, "")


@pytest.mark.parametrize("text", ["a|b", "x`y", "<script>", "C++", "a*b*c", "run 'x  y' --out=_a_"])
def test_names_settings_and_commands_are_shown_literally(text: str) -> None:
    page = markdown_to_safe_html(about(result(tasks=(text, "b")), {"key": text}, text))
    shown = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert page.count(f"<code>{shown}</code>") == 3
    assert f"<td><code>key</code></td>\n<td><code>{shown}</code></td>" in page
