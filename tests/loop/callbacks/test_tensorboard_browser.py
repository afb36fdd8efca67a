"""TensorBoard's pages of two runs in a browser; `pytest -m slow` runs these tests.

Needs Chromium and its driver (Debian: apt-get install chromium chromium-driver).
"""

from __future__ import annotations

import io
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from loop_helpers import mlp, stream
from PIL import Image

from everloop.contract import ACCURACY
from everloop.loop import (
    Callback,
    Divergence,
    Plan,
    Replay,
    Result,
    Run,
    SupervisedLearner,
    TensorBoardLogger,
    Training,
)
from everloop.loop.callbacks.curves import titles

pytest.importorskip("selenium", reason="selenium is not installed: pip install everloop[dev]")
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium and chromedriver are missing"),
    pytest.mark.xdist_group("browser"),
]
SWITCHES = (
    *("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync"),
    *("disable-background-networking", "disable-component-update", "window-size=1280,800"),
)
SCENARIO = "digits (C++)"
PATIENCE = 60.0  # seconds until a page must show its content

FIND = """
const found = [];
function walk(root) {  // much of TensorBoard lives in nested shadow roots
  for (const e of root.querySelectorAll('*')) {
    found.push(e);
    if (e.shadowRoot) walk(e.shadowRoot);
  }
}
const inside = arguments[1] || document;
walk(inside);
if (inside.shadowRoot) walk(inside.shadowRoot);
const all = found.filter(e => e.tagName.toLowerCase() === arguments[0]);
"""
VISIBLE = FIND + "return all.filter(e => e.getClientRects().length);"
TEXTS = FIND + "return all.map(e => e.textContent.trim());"
COLORS = """
const lines = all.filter(e => e.classList.contains('line') && /[LC]/.test(e.getAttribute('d')));
return [...new Set(lines.map(e => getComputedStyle(e).stroke))];
"""


class Name(Callback):
    """Names a run."""

    def __init__(self, strategies: list[str]) -> None:
        self.strategies = strategies

    def on_run_begin(self, run: Run) -> None:
        run.result.scenario, run.result.strategies = SCENARIO, self.strategies


def train_run(folder: Path, name: str) -> Result:
    learner = SupervisedLearner(mlp(), stream(), Training(1e-2))
    strategies = [] if name == "none" else [Replay(strength=1.0)]
    plan = Plan([[0], [1], [2]], [160] * 3, eval_every=32)
    callbacks = [
        Name([name]),
        Divergence(),
        TensorBoardLogger(folder / name, {"epochs": 1}, f"everloop run {name}"),
    ]
    return Run(learner, plan, stream(16, split="test"), strategies, callbacks).go()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Result]]:
    folder = tmp_path_factory.mktemp("runs")
    return folder, {name: train_run(folder, name) for name in ("none", "replay")}


@pytest.fixture(scope="module")
def address(results: tuple[Path, dict[str, Result]]) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = ["-m", "tensorboard.main", "--logdir", str(results[0]), "--host", "127.0.0.1"]
    with subprocess.Popen(
        [sys.executable, *command, "--port", port],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as server:
        address = f"http://127.0.0.1:{port}"
        try:
            until(lambda: b"replay" in urllib.request.urlopen(f"{address}/data/runs").read())
            yield address
        finally:
            server.terminate()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for switch in (*SWITCHES, f"user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(f"--{switch}")
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield browser
    browser.quit()


def until(happens: Callable[[], Any]) -> Any:
    """Wait until `happens()` is true, and return its value."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            if value := happens():
                return value
        except (OSError, StaleElementReferenceException):
            pass  # the server is not up yet, or the page has been redrawn
        assert time.monotonic() < end, f"not within {PATIENCE:.0f} s"
        time.sleep(0.5)


def visit(browser: Any, address: str, page: str) -> None:
    browser.get("about:blank")
    browser.get(f"{address}/#{page}")


def visible(browser: Any, name: str, inside: Any = None) -> list[Any]:
    """The visible elements of a kind, including those in shadow roots."""
    return browser.execute_script(VISIBLE, name, inside)


def texts(browser: Any, name: str, inside: Any = None) -> list[str]:
    return browser.execute_script(TEXTS, name, inside)


def line_colors(browser: Any, card: Any) -> list[str]:
    """The colours of the lines that a chart draws."""
    return browser.execute_script(FIND + COLORS, "path", card)


def strong_colors(canvas: Any) -> int:
    """The number of colours in a canvas that are as strong as those of runs."""
    picture = Image.open(io.BytesIO(canvas.screenshot_as_png)).convert("RGB").quantize(32)
    palette, counts = picture.getpalette() or [], picture.getcolors() or []
    colors = [(n, palette[3 * i : 3 * i + 3]) for n, i in counts]
    return sum(n > 20 and max(color) - min(color) > 60 for n, color in colors)


def test_every_custom_chart_draws_each_run_in_its_colour(browser: Any, address: str) -> None:
    visit(browser, address, "custom_scalars")

    def drawn() -> list[tuple[str, list[str]]] | None:
        cards = visible(browser, "tf-custom-scalar-multi-line-chart-card")
        found = [(card.text.splitlines()[0], line_colors(browser, card)) for card in cards]
        return found if len(found) == 7 and all(len(colors) == 2 for _, colors in found) else None

    charts = dict(until(drawn))
    assert list(charts) == list(titles(ACCURACY).values())
    assert len({tuple(sorted(colors)) for colors in charts.values()}) == 1
    (category,) = visible(browser, "tf-category-paginated-view")
    assert SCENARIO in category.text


def test_scalars_draw_a_line_for_each_run(browser: Any, address: str) -> None:
    visit(browser, address, "scalars")

    def drawn() -> list[Any] | None:
        cards = [c for c in visible(browser, "tf-scalar-card") if "average/" in c.text]
        colors = [line_colors(browser, card) for card in cards]
        return cards if [len(found) for found in colors] == [2, 2] else None

    names = [card.text.splitlines()[0] for card in until(drawn)]
    assert names == ["average/digits [C++]/forgetting", "average/digits [C++]/score"]


def test_time_series_show_the_last_numbers_of_the_result(
    browser: Any,
    address: str,
    results: tuple[Path, dict[str, Result]],
) -> None:
    visit(browser, address, "timeseries")
    lasts = [result.average_now() or 0.0 for result in results[1].values()]

    def shown() -> Any:
        cards = [c for c in visible(browser, "scalar-card") if "/score" in c.text]
        return next((c for c in cards if all(f"{v:.6g}" in c.text for v in lasts)), None)

    card = until(shown)
    assert "none" in card.text
    assert "replay" in card.text
    canvas = visible(browser, "canvas", card)[0]
    until(lambda: strong_colors(canvas) >= 2)


def test_images_show_both_figures_of_each_run(browser: Any, address: str) -> None:
    visit(browser, address, "images")

    def loaded() -> list[str] | None:
        cards = visible(browser, "tf-image-loader")
        pictures = [picture for card in cards for picture in visible(browser, "img", card)]
        wide = [int(picture.get_property("naturalWidth")) > 250 for picture in pictures]
        return [card.text for card in cards] if len(wide) == 4 and all(wide) else None

    cards = until(loaded)
    for tag in ("learning curves", "score matrix"):
        for name in ("none", "replay"):
            assert sum(tag in card and name in card for card in cards) == 1


def test_the_card_is_a_page_with_tables(browser: Any, address: str) -> None:
    visit(browser, address, "text")
    headings = {f"{SCENARIO}: none", f"{SCENARIO}: replay"}
    until(lambda: set(texts(browser, "h1")) == headings)  # the cards of both runs are loaded
    cells = texts(browser, "td")
    assert "score/<task>" in cells
    assert {"epochs", "1"} <= set(cells)
    assert {"everloop run none", "everloop run replay"} <= set(texts(browser, "code"))


def test_hparams_have_a_row_of_settings_and_measures_for_each_run(
    browser: Any,
    address: str,
    results: tuple[Path, dict[str, Result]],
) -> None:
    visit(browser, address, "hparams")
    expected = {"scenario", "strategies", "seed", "epochs", "average accuracy (%)"}
    for name, result in results[1].items():
        expected |= {name, f"{result.average_score:.5g}"}
    until(lambda: expected <= set(texts(browser, "vaadin-grid-cell-content")))
