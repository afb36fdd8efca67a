"""Experiments as the command line makes them, and what a run has left in its folder."""

import json
from pathlib import Path
from typing import Any

import pytest

from everloop.scenarios import Experiment, arguments
from everloop.scenarios.cli import main


def result_of(folder: Path | str) -> dict[str, Any]:
    """Return the content of result.json without the time that the run took."""
    content: dict[str, Any] = json.loads((Path(folder) / "result.json").read_text())
    del content["wall_seconds"]
    return content


SHORT = ["--iterations", "3", "--eval-every", "100000"]


def asked(*words: str) -> Experiment:
    """Return the experiment that `everloop run` with these words makes."""
    request = arguments.read(words)
    return request.experiment(request.strategies[0], request.seeds[0], None)


def fails(words: list[str], capsys: pytest.CaptureFixture[str], *said: str) -> None:
    """Check that the command ends with status 2 and one line on stderr with all of `said`."""
    assert main(words) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    for part in said:
        assert part in lines[0]
