"""The result of a run: its evaluations, and all measures that follow from them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from everloop.contract import Metric
from everloop.loop.results import metrics

VERSION = 2


@dataclass(frozen=True)
class Evaluation:
    """The score of every task at one point of a run.

    Args:
        step: World steps learned from so far, 0 or more.
        phase: Index of the phase in progress; None before any training.
        ends_phase: True for the evaluation at the end of its phase: a row of the score matrix.
        scores: Score of each task, in the result's metric; nan for a task that was not evaluated.
        returns: Mean return of each task, from which the scores follow. On a data set it is the
            metric's value from 0 to 1.
    """

    step: int
    phase: int | None
    ends_phase: bool
    scores: list[float]
    returns: list[float]


@dataclass(frozen=True)
class Rollback:
    """A return to an earlier state of the run, because training had diverged.

    Args:
        step: World steps learned from when it diverged.
        from_step: World steps of the state from which the run went on.
        rate_factor: What the learning rates of the settings are multiplied by since then.
        because: The error.
    """

    step: int
    from_step: int
    rate_factor: float
    because: str


@dataclass
class Result:
    """The evaluations of one run. The score matrix and every measure are functions of them.

    Args:
        tasks: Names of all tasks.
        phases: Ids of the tasks that each phase trains.
        metric: Name and unit of the scores.
        evaluations: Evaluations in chronological order; the first one precedes any training.
        steps: World steps learned from, with fresh rollouts and pre-training.
        updates: Optimizer steps of the network, with those of strategies and pre-training.
        presentations: Examples whose gradient an update used, each time that one was: of the
            stream, replayed, or presented again at a task's end.
        online_accuracy: Accuracy in % on each example before its update; None without labels.
        online_return: Mean return of the episodes in training; None on a data set.
        wall_seconds: Seconds since the run began, including evaluation.
        scenario: Name of the scenario; empty if there is none.
        strategies: Names of the strategies.
        seed: Seed of the run.
        rollbacks: Returns to an earlier state, in chronological order.
    """

    tasks: list[str]
    phases: list[list[int]]
    metric: Metric
    evaluations: list[Evaluation] = field(default_factory=list)
    steps: int = 0
    updates: int = 0
    presentations: int = 0
    online_accuracy: float | None = None
    online_return: float | None = None
    wall_seconds: float = 0.0
    scenario: str = ""
    strategies: list[str] = field(default_factory=list)
    seed: int = 0
    rollbacks: list[Rollback] = field(default_factory=list)

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
        """The mean returns from which `scores` follow, in the same layout."""
        return [now.returns for now in self.rows]

    @property
    def finished(self) -> list[list[int]]:
        """The ids of the tasks of each phase that has ended."""
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
    def one_step_backward_transfer(self) -> float | None:
        """`metrics.one_step_backward_transfer` of the phases so far."""
        return metrics.one_step_backward_transfer(self.scores, self.finished)

    @property
    def min_accuracy(self) -> float | None:
        """`metrics.min_accuracy` of the evaluations so far."""
        return metrics.min_accuracy(*self._course(), self.phases)

    @property
    def worst_case_accuracy(self) -> float | None:
        """`metrics.worst_case_accuracy` of the evaluations so far."""
        return metrics.worst_case_accuracy(*self._course(), self.phases)

    def _course(self) -> tuple[list[list[float]], list[int | None], list[bool]]:
        """Return the scores, the phase and the end of a phase at each evaluation."""
        return (
            [now.scores for now in self.evaluations],
            [now.phase for now in self.evaluations],
            [now.ends_phase for now in self.evaluations],
        )

    @property
    def forward_transfer(self) -> float | None:
        """`metrics.forward_transfer` of the phases so far; None if each task has new classes."""
        if self.metric.new_classes:
            return None
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
        """Return the ids of the tasks whose training had begun at evaluation `now`, in order."""
        begun = [] if now.phase is None else self.phases[: now.phase + 1]
        return sorted({task for tasks in begun for task in tasks})

    def as_if_ended(self) -> Self:
        """Return the result that there would be if the phase had ended at the latest evaluation."""
        *earlier, now = self.evaluations
        return replace(self, evaluations=[*earlier, replace(now, ends_phase=True)])

    def average_now(self) -> float | None:
        """Return the mean score of the tasks seen so far, at the latest evaluation."""
        now = self.evaluations[-1]
        return metrics.mean([now.scores[j] for j in self.seen(now)])

    def forgetting_now(self) -> list[float | None]:
        """Return the forgetting of each task at the latest evaluation; None where unknown.

        A task is compared with its best score at the end of a phase, from its first phase on.
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
        """Return every measure by name; None if it can't be computed."""
        return {name: getattr(self, name) for name in MEASURES}

    @property
    def applicable(self) -> list[str]:
        """The names of the measures that some run of this world and metric can have."""
        other = "online_return" if self.metric.unit == "%" else "online_accuracy"
        never = {other, "forward_transfer"} if self.metric.new_classes else {other}
        return [name for name in MEASURES if name not in never]

    def reasons(self) -> dict[str, str]:
        """Return why a measure can't be computed, by the name of each measure that is None."""
        return {
            name: self._reason(name) for name, value in self.measures().items() if value is None
        }

    def _reason(self, measure: str) -> str:
        if measure == "online_accuracy":
            return "the world reveals no labels"
        if measure == "online_return":
            return "no episode has ended" if self.metric.unit != "%" else "it is a data set"
        if not self.rows:
            return "no phase has ended"
        if measure == "forward_transfer" and self.metric.new_classes:
            return "each task has new classes, which can't be predicted before it is trained"
        if len(self.rows) == 1:
            return "it needs two phases"
        if any(math.isnan(score) for now in self.evaluations for score in now.scores):
            return "some tasks were not evaluated; use eval_tasks all"
        return "no task was followed by another phase"

    def to_dict(self) -> dict[str, Any]:
        """Return the content of result.json. Unknown numbers are None."""
        return {
            "version": VERSION,
            "scenario": self.scenario,
            "strategies": self.strategies,
            "seed": self.seed,
            "complete": self.complete,
            "metric": {
                "name": self.metric.name,
                "unit": self.metric.unit,
                "new_classes": self.metric.new_classes,
            },
            "tasks": self.tasks,
            "phases": [[self.tasks[j] for j in phase] for phase in self.phases],
            **self.measures(),
            "reasons": self.reasons(),
            "before": _known(self.before),
            "scores": [_known(row) for row in self.scores],
            "returns": [_known(row) for row in self.returns],
            "steps": self.steps,
            "updates": self.updates,
            "presentations": self.presentations,
            "wall_seconds": self.wall_seconds,
            "rollbacks": [asdict(rollback) for rollback in self.rollbacks],
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
        """Load a result. A run that stopped early has the phases that it ended.

        Args:
            path: The folder of a run, or a result.json.

        Raises:
            ValueError: If there is no result, or if it can't be read. The message is one line.
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
        """Return the result that `to_dict` gave."""
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
            content["updates"],
            content["presentations"],
            content["online_accuracy"],
            content["online_return"],
            content["wall_seconds"],
            content["scenario"],
            content["strategies"],
            content["seed"],
            [Rollback(**rollback) for rollback in content.get("rollbacks", [])],
        )


MEASURES = (
    "average_score",
    "average_incremental_score",
    "forgetting",
    "backward_transfer",
    "one_step_backward_transfer",
    "forward_transfer",
    "learning_accuracy",
    "anytime_score",
    "min_accuracy",
    "worst_case_accuracy",
    "online_accuracy",
    "online_return",
)
"""The names of the measures, in a `Result` and in result.json."""
LOWER_IS_BETTER = ("forgetting",)
"""The measures of which a low value is good."""


def _known(values: list[float]) -> list[float | None]:
    """Return the values with None for those that are not finite."""
    return [value if math.isfinite(value) else None for value in values]


def _numbers(values: list[float | None]) -> list[float]:
    """Return the values with nan for None."""
    return [math.nan if value is None else value for value in values]
