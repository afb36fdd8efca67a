"""Folders of made-up runs, for the tests of comparisons."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from everloop.contract import ACCURACY, Metric
from everloop.loop import Evaluation, Result
from everloop.loop.disk import write_json
from everloop.scenarios.compare import Comparisons
from everloop.scenarios.compare_output import (
    print_comparisons,
)


def run_at(
    folder: Path,
    level: float,
    seed: int,
    strategies: str = "ewc",
    metric: Metric = ACCURACY,
    phases: int = 2,
    **changes: Any,
) -> Path:
    """Write a run of two tasks with average `level` at the end and 10 points of forgetting."""
    ends = [
        Evaluation(100, 0, True, [level + 10, 0.0], [0.0, 0.0]),
        Evaluation(150, 1, False, [level + 5, level - 5], [0.0, 0.0]),
        Evaluation(200, 1, True, [level, level], [0.0, 0.0]),
    ]
    first = Evaluation(0, None, False, changes.pop("before", [0.0, 0.0]), [0.0, 0.0])
    scenario = changes.pop("scenario", "made-up")
    evaluations = [first, *(ends if phases == 2 else ends[:1])]
    amounts = {key: changes.pop(key, 0) for key in ("updates", "presentations")}
    result = Result(
        changes.pop("tasks", ["a", "b"]),
        [[0], [1]],
        metric,
        evaluations,
        steps=200,
        wall_seconds=1.0,
        scenario=scenario,
        strategies=strategies.split("+"),
        seed=seed,
        **amounts,
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "result.json", result.to_dict())
    config = {
        "scenario": scenario,
        "strategies": strategies.split("+"),
        "seed": seed,
        "threads": 1 + seed,
        "epochs": 3,
        **changes,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def grid(folder: Path) -> Path:
    """Write runs of none and ewc with seeds 0 to 2, about 20 points apart, and one of joint."""
    for seed, noise in enumerate([0.0, 3.0, -2.0]):
        run_at(folder / f"x{seed}", 30 + noise, seed, "none")
        run_at(folder / "deep" / f"y{seed}", 50 + noise + seed / 10, seed)
    run_at(folder / "z", 90, 0, "joint")
    return folder


def bare_run(
    folder: Path, seed: int, ends: tuple[int, int] = (100, 200), last: float = 60.0
) -> None:
    """Write a run of ewc with phases up to steps `ends`; `last` is the first task's last score."""
    evaluations = [
        Evaluation(0, None, False, [0.0, 0.0], [0.0, 0.0]),
        Evaluation(ends[0], 0, True, [70.0, 0.0], [0.0, 0.0]),
        Evaluation(ends[1], 1, True, [last, 50.0], [0.0, 0.0]),
    ]
    result = Result(
        ["a", "b"],
        [[0], [1]],
        ACCURACY,
        evaluations,
        steps=ends[1],
        wall_seconds=1.0,
        scenario="made-up",
        strategies=["ewc"],
        seed=seed,
    )
    folder.mkdir(parents=True)
    write_json(folder / "result.json", result.to_dict())
    (folder / "config.yaml").write_text("scenario: made-up")


def shown(found: Comparisons, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    print_comparisons(found, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()
