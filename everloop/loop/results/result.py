"""What a run leaves behind: its evaluations, and everything that follows from them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from everloop.contract import Metric
from everloop.loop.results import metrics

VERSION = 1


@dataclass(frozen=True)
class Evaluation:
    """Every task's score at one point of a run; nan for a task that was not measured.

    Args:
        step: World steps learned from so far.
        phase: The phase that was under way; None before any training.
        ends_phase: True for the evaluation at the end of its phase: a row of the score matrix.
        scores: One a task, in the result's metric.
        returns: The mean returns that the scores come from: of a stream, shares from 0 to 1.
    """

    step: int
    phase: int | None
    ends_phase: bool
    scores: list[float]
    returns: list[float]


@dataclass
class Result:
    """The evaluations of one run. The score matrix and every measure are functions of them.

    Args:
        tasks: The names of all tasks.
        phases: The ids of the tasks that each phase trains.
        metric: What the scores are.
        evaluations: In the order in which they were made; the first one before any training.
        steps: World steps learned from.
        wall_seconds: Time since the run began, measuring included.
        scenario, strategies, seed: What was run.
    """

    tasks: list[str]
    phases: list[list[int]]
    metric: Metric
    evaluations: list[Evaluation] = field(default_factory=list)
    steps: int = 0
    wall_seconds: float = 0.0
    scenario: str = ""
    strategies: list[str] = field(default_factory=list)
    seed: int = 0

    @property
    def before(self) -> list[float]:
        """Scores before any training."""
        return self.evaluations[0].scores

    @property
    def rows(self) -> list[Evaluation]:
        """The evaluations at the ends of the phases so far."""
        return [now for now in self.evaluations if now.ends_phase]

    @property
    def scores(self) -> list[list[float]]:
        """The score matrix: scores[i][j] is the score on task j after phase i."""
        return [now.scores for now in self.rows]

    @property
    def returns(self) -> list[list[float]]:
        """The mean returns that `scores` come from."""
        return [now.returns for now in self.rows]

    @property
    def finished(self) -> list[list[int]]:
        """The phases that have ended."""
        return self.phases[: len(self.rows)]

    @property
    def complete(self) -> bool:
        """True if every phase has ended."""
        return len(self.rows) == len(self.phases)

    @property
    def average_score(self) -> float | None:
        """`metrics.average_score` of the phases so far."""
        return metrics.average_score(self.scores, self.finished)

    @property
    def average_incremental_score(self) -> float | None:
        """`metrics.average_incremental_score` of the phases so far."""
        return metrics.average_incremental_score(self.scores, self.finished)

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
        under_way = [now for now in self.evaluations if now.phase is not None]
        return metrics.anytime_score(
            [now.step for now in under_way],
            [now.scores for now in under_way],
            [self.seen(now) for now in under_way],
        )

    def seen(self, now: Evaluation) -> list[int]:
        """The ids of the tasks whose training had begun at an evaluation, in order."""
        begun = [] if now.phase is None else self.phases[: now.phase + 1]
        return sorted({task for tasks in begun for task in tasks})

    def average_now(self) -> float | None:
        """The mean score of the tasks seen so far, at the latest evaluation."""
        now = self.evaluations[-1]
        return metrics.mean([now.scores[j] for j in self.seen(now)])

    def forgetting_now(self) -> list[float | None]:
        """Each task's forgetting at the latest evaluation, against its best since its first
        training ended.
        """
        now = self.evaluations[-1]
        current: list[float | None] = []
        for j in range(len(self.tasks)):
            first = next((i for i, tasks in enumerate(self.phases) if j in tasks), len(self.phases))
            past = [
                row.scores[j] for row in self.rows if row.phase is not None and row.phase >= first
            ]
            if now.ends_phase and len(past) > 1:
                past.pop()  # `now` itself
            current.append(metrics.task_forgetting([*past, now.scores[j]]))
        return current

    def measures(self) -> dict[str, float | None]:
        """Every measure by name; None where it can't be computed."""
        return {name: getattr(self, name) for name in MEASURES}

    def to_dict(self) -> dict[str, Any]:
        """The content of result.json. Numbers that are not known are None."""
        return {
            "version": VERSION,
            "scenario": self.scenario,
            "strategies": self.strategies,
            "seed": self.seed,
            "complete": self.complete,
            "metric": {"name": self.metric.name, "unit": self.metric.unit},
            "tasks": self.tasks,
            "phases": [[self.tasks[j] for j in phase] for phase in self.phases],
            **self.measures(),
            "before": _known(self.before),
            "scores": [_known(row) for row in self.scores],
            "returns": [_known(row) for row in self.returns],
            "steps": self.steps,
            "wall_seconds": self.wall_seconds,
            "evaluations": [
                {
                    "step": now.step,
                    "phase": now.phase,
                    "ends_phase": now.ends_phase,
                    "scores": _known(now.scores),
                    "returns": _known(now.returns),
                }
                for now in self.evaluations
            ],
        }

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """The result in a run's folder, or in a result.json; of a run that stopped early, its
        phases so far.

        Raises:
            ValueError: In one line, for what is not there or is not a result.
        """
        file = Path(path) / "result.json" if Path(path).is_dir() else Path(path)
        try:
            content = json.loads(file.read_text())
        except FileNotFoundError:
            raise ValueError(
                f"{path} holds no result.json; give the folder of a run that has ended a phase"
            ) from None
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"{file} can't be read: {error}") from None
        if not isinstance(content, dict) or content.get("version") != VERSION:
            found = content.get("version") if isinstance(content, dict) else None
            raise ValueError(
                f"{file} has format version {found}; this everloop reads version {VERSION}, so run "
                "it again"
            )
        try:
            return cls.from_dict(content)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"{file} is damaged ({type(error).__name__}: {error}); run it again"
            ) from None

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        tasks = content["tasks"]
        return cls(
            tasks,
            [[tasks.index(name) for name in phase] for phase in content["phases"]],
            Metric(**content["metric"]),
            [
                Evaluation(
                    e["step"],
                    e["phase"],
                    e["ends_phase"],
                    _numbers(e["scores"]),
                    _numbers(e["returns"]),
                )
                for e in content["evaluations"]
            ],
            content["steps"],
            content["wall_seconds"],
            content["scenario"],
            content["strategies"],
            content["seed"],
        )


MEASURES = (
    "average_score",
    "average_incremental_score",
    "forgetting",
    "backward_transfer",
    "forward_transfer",
    "learning_accuracy",
    "anytime_score",
)
"""The measures of a result, as result.json names them."""


def _known(values: list[float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values]


def _numbers(values: list[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` whole or not at all."""
    temporary = path.with_suffix(".tmp")
    try:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
