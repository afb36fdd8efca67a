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
    """Scores and returns of the tasks after `step` world steps of learning; nan for those not measured."""

    step: int
    phase: int
    scores: list[float]
    returns: list[float] = field(default_factory=list)


@dataclass
class Result:
    """Scores of one run; every measure is a function of them (see `everloop.loop.metrics`).

    tasks: all names; phases: the ids trained in each phase; before: scores before any training;
    scores[i][j]: score on task j after phase i, and returns[i][j] the mean return that it was scaled from (of a
    stream the accuracy); evaluations: those and the ones in between.
    """

    tasks: list[str]
    phases: list[list[int]]
    before: list[float]
    scores: list[list[float]] = field(default_factory=list)
    returns: list[list[float]] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    steps: int = 0
    wall_seconds: float = 0.0

    @property
    def finished(self) -> list[list[int]]:
        """The phases that have a row in `scores`: of a run that is under way, those so far."""
        return self.phases[: len(self.scores)]

    @property
    def average_score(self) -> float | None:
        """`metrics.average_score` of the phases so far."""
        return metrics.average_score(self.scores, self.finished)

    @property
    def forgetting(self) -> float | None:
        """`metrics.forgetting` of the phases so far."""
        return metrics.forgetting(self.scores, self.finished)

    @property
    def backward_transfer(self) -> float | None:
        """`metrics.backward_transfer` of the phases so far."""
        return metrics.backward_transfer(self.scores, self.finished)

    @property
    def forward_transfer(self) -> float | None:
        """`metrics.forward_transfer` of the phases so far."""
        return metrics.forward_transfer(self.scores, self.finished, self.before)

    @property
    def learning_accuracy(self) -> float | None:
        """`metrics.learning_accuracy` of the phases so far."""
        return metrics.learning_accuracy(self.scores, self.finished)

    @property
    def anytime_score(self) -> float | None:
        """`metrics.anytime_score` of the evaluations so far."""
        seen = [{task for tasks in self.phases[: now.phase + 1] for task in tasks} for now in self.evaluations]
        return metrics.anytime_score([now.step for now in self.evaluations], [now.scores for now in self.evaluations], seen)

    def forgetting_now(self) -> list[float | None]:
        """Each task's forgetting at the latest evaluation, against its best since its first training ended."""
        now = self.evaluations[-1]
        current: list[float | None] = []
        for j in range(len(self.tasks)):
            first = next((i for i, tasks in enumerate(self.phases) if j in tasks), len(self.phases))
            past = [row[j] for row in self.scores[first:]]
            if len(past) > 1 and len(self.scores) > now.phase:
                past.pop()  # this evaluation is the end of a phase, and stands in the matrix already
            current.append(metrics.task_forgetting([*past, now.scores[j]]))
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
            "returns": [_known(row) for row in self.returns],
            "average_score": self.average_score,
            "forgetting": self.forgetting,
            "backward_transfer": self.backward_transfer,
            "forward_transfer": self.forward_transfer,
            "learning_accuracy": self.learning_accuracy,
            "anytime_score": self.anytime_score,
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
