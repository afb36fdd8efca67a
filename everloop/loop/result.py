"""What a run leaves behind."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from everloop.loop import metrics


@dataclass
class Evaluation:
    """Scores of all tasks after `step` world steps of learning."""

    step: int
    phase: int
    scores: list[float]


@dataclass
class Result:
    """Scores of one run; every measure is a function of them (see `everloop.loop.metrics`).

    tasks: all names; phases: the ids trained in each phase; before: scores before any training;
    scores[i][j]: score on task j after phase i; evaluations: those and the ones in between.
    """

    tasks: list[str]
    phases: list[list[int]]
    before: list[float]
    scores: list[list[float]] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    steps: int = 0
    wall_seconds: float = 0.0

    @property
    def average_score(self) -> float | None:
        return metrics.average_score(self.scores, self.phases)

    @property
    def forgetting(self) -> float | None:
        return metrics.forgetting(self.scores, self.phases)

    @property
    def backward_transfer(self) -> float | None:
        return metrics.backward_transfer(self.scores, self.phases)

    @property
    def forward_transfer(self) -> float | None:
        return metrics.forward_transfer(self.scores, self.phases, self.before)

    @property
    def learning_accuracy(self) -> float | None:
        return metrics.learning_accuracy(self.scores, self.phases)

    def forgetting_now(self) -> list[float | None]:
        """Each task's forgetting at the latest evaluation, against its best since its first training ended."""
        current: list[float | None] = []
        for j in range(len(self.tasks)):
            first = next((i for i, tasks in enumerate(self.phases) if j in tasks), None)
            ended = first is not None and len(self.scores) > first
            history = [self.scores[i][j] for i in range(first, len(self.scores))] if first is not None and ended else []
            current.append(metrics.task_forgetting([*history, self.evaluations[-1].scores[j]]))
        return current

    def to_dict(self, scenario: str, strategies: list[str], seed: int) -> dict[str, Any]:
        """The content of result.json: a stable interface, where unknown numbers are None."""
        return {
            "scenario": scenario,
            "strategies": strategies,
            "seed": seed,
            "tasks": self.tasks,
            "phases": [[self.tasks[j] for j in phase] for phase in self.phases],
            "scores": [_known(row) for row in self.scores],
            "before": _known(self.before),
            "average_score": self.average_score,
            "forgetting": self.forgetting,
            "backward_transfer": self.backward_transfer,
            "forward_transfer": self.forward_transfer,
            "learning_accuracy": self.learning_accuracy,
            "steps": self.steps,
            "wall_seconds": self.wall_seconds,
        }


def _known(values: list[float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values]


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
    temporary.replace(path)
