"""TensorBoard in a real browser: every page shows what a run has written."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from everloop.scenarios import Experiment, SplitDigits

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver (Debian: chromium, chromium-driver)"),
]
FLAGS = "headless=new no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update disable-sync"
DEEP = """
const found = [];
const walk = node => {
  for (const child of node.querySelectorAll('*')) { if (child.shadowRoot) walk(child.shadowRoot); }
  found.push(...node.querySelectorAll(arguments[0]));
};
walk(document);
"""
"""Finds elements inside all shadow roots, in which TensorBoard's older pages live."""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A TensorBoard over two runs of digits."""
    folder = tmp_path_factory.mktemp("runs")
    for strategies in ("none", "ewc,replay"):
        Experiment(SplitDigits(epochs=2), strategies, out=folder / strategies.replace(",", "+")).run()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--port", str(port), "--load_fast=false"]
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(120):
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in FLAGS.split():
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.add_argument("--window-size=1280,2400")
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


def wait(browser: Any, script: str, *arguments: Any, wanted: int = 1) -> list[Any]:
    """What the script finds, as soon as it finds enough; fails after a minute."""
    found: list[Any] = []
    for _ in range(60):
        found = browser.execute_script(script, *arguments)
        if len(found) >= wanted:
            return found
        time.sleep(1)
    raise AssertionError(f"{len(found)} found, wanted {wanted}: {found}")


def shown(browser: Any, address: str, page: str) -> None:
    browser.get("about:blank")
    browser.get(f"{address}/#{page}")


def test_every_custom_chart_draws_a_line_of_each_run(browser: Any, address: str) -> None:
    shown(browser, address, "custom_scalars")
    script = (
        DEEP
        + """
return found.map(card => {
  const paths = [];
  const lines = node => {
    for (const child of node.querySelectorAll('*')) { if (child.shadowRoot) lines(child.shadowRoot); }
    paths.push(...[...node.querySelectorAll('path')].map(e => e.getAttribute('d') || ''));
  };
  lines(card.shadowRoot);
  return [card.title, new Set(paths.filter(d => (d.match(/L/g) || []).length > 2)).size];
}).filter(([title, lines]) => title && lines > 1);"""
    )
    charts = dict(wait(browser, script, "tf-custom-scalar-multi-line-chart-card", wanted=4))
    assert "average accuracy of the tasks seen so far (%)" in charts
    assert "forgetting of the tasks seen so far (points)" in charts


def test_time_series_draw_lines_for_both_runs(browser: Any, address: str) -> None:
    shown(browser, address, "timeseries")
    wait(browser, DEEP + "return found.map(e => e.textContent).filter(t => t.includes('average/score'));", "card-view")
    lines = wait(browser, DEEP + "return found.map(e => e.getAttribute('d')).filter(d => d && d.length > 20);", "line-chart path", wanted=2)
    assert len(set(lines)) >= 2


def test_images_hold_pictures_of_both_runs(browser: Any, address: str) -> None:
    shown(browser, address, "images")
    sizes = wait(
        browser, DEEP + "return found.filter(e => e.naturalWidth > 300).map(e => [e.naturalWidth, e.naturalHeight]);", "img", wanted=4
    )
    assert all(width > height for width, height in sizes)


def test_the_text_card_explains_the_curves(browser: Any, address: str) -> None:
    shown(browser, address, "text")
    cells = wait(browser, DEEP + "return found.map(e => e.textContent.trim()).filter(t => t);", "td", wanted=20)
    assert "forgetting/TASK" in cells
    assert "training.learning_rate" in cells


def test_hparams_list_both_runs_with_the_same_columns(browser: Any, address: str) -> None:
    shown(browser, address, "hparams")
    script = DEEP + "return found.map(e => e.textContent.trim()).filter(t => t);"
    text = " ".join(wait(browser, script, "vaadin-grid-cell-content, td, th", wanted=10))
    assert "strategies" in text or "batch_size" in text
    assert "ewc+replay" in text
    assert "none" in text
