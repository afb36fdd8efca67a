"""Measures of continual learning, each a function of the score matrix.

S[i][j] is the score on task j after phase i: an accuracy in %, a score from 0 (random) to 1 (best
known), or a return. `phases[i]` are the ids of the tasks that phase i trains. T is the last phase.
In the formulas, phase j is the last phase that trains task j. A measure that cannot be computed,
for example forgetting after a single phase or with a nan score, is None.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

Matrix = Sequence[Sequence[float]]
Phases = Sequence[Sequence[int]]


def mean(values: Sequence[float]) -> float | None:
    """Return the mean, or None if there are no values or one is not finite."""
    return sum(values) / len(values) if values and all(math.isfinite(v) for v in values) else None


def _first(phases: Phases, task: int) -> int:
    """Return the first phase that trains `task`."""
    return next(i for i, tasks in enumerate(phases) if task in tasks)


def _last(phases: Phases, task: int) -> int:
    """Return the last phase that trains `task`."""
    return max(i for i, tasks in enumerate(phases) if task in tasks)


def _trained(phases: Phases) -> list[int]:
    """Return the ids of all trained tasks, in order."""
    return sorted({task for tasks in phases for task in tasks})


def average_score(S: Matrix, phases: Phases) -> float | None:
    """Return mean_j S[T][j] over the trained tasks (Lopez-Paz & Ranzato 2017, ACC)."""
    return mean([S[-1][j] for j in _trained(phases)])


def average_incremental_score(S: Matrix, phases: Phases) -> float | None:
    """Return mean_i mean_j S[i][j] over the phases i and the tasks j trained by the end of i.

    For accuracies this is the average incremental accuracy (Rebuffi et al. 2017, "iCaRL", section
    4). Here every task counts the same, even if tasks differ in their number of test examples.
    """
    averages = [average_score(S[: i + 1], phases[: i + 1]) for i in range(len(S))]
    return None if None in averages else mean([a for a in averages if a is not None])


def task_forgetting(history: Sequence[float]) -> float | None:
    """Return the maximum of the earlier scores minus the last score of one task.

    Args:
        history: The task's scores since it was first trained.

    Returns:
        The forgetting, negative if the task has improved; None for fewer than two scores.
    """
    return (
        max(history[:-1]) - history[-1]
        if len(history) > 1 and all(map(math.isfinite, history))
        else None
    )


def forgetting(S: Matrix, phases: Phases) -> float | None:
    """Return mean_j (max_{i<T} S[i][j] - S[T][j]) over tasks not trained in the last phase.

    The maximum starts at the first phase that trains j. Chaudhry et al. 2018, "Riemannian walk",
    section 4.
    """
    old = [j for j in _trained(phases) if _last(phases, j) < len(phases) - 1]
    values = [task_forgetting([row[j] for row in S[_first(phases, j) :]]) for j in old]
    return None if None in values else mean([v for v in values if v is not None])


def backward_transfer(S: Matrix, phases: Phases) -> float | None:
    """Return mean_j (S[T][j] - S[j][j]) over tasks not trained in the last phase.

    Lopez-Paz & Ranzato 2017, BWT.
    """
    old = [j for j in _trained(phases) if _last(phases, j) < len(phases) - 1]
    return mean([S[-1][j] - S[_last(phases, j)][j] for j in old])


def one_step_backward_transfer(S: Matrix, phases: Phases) -> float | None:
    """Return mean_j (S[j+1][j] - S[j][j]) over tasks not trained in the last phase.

    It is the change by the very next phase (Kumar et al. 2023, "Maintaining plasticity in continual
    learning via regenerative regularization", section A.2.6).
    """
    old = [j for j in _trained(phases) if _last(phases, j) < len(phases) - 1]
    return mean([S[_last(phases, j) + 1][j] - S[_last(phases, j)][j] for j in old])


def min_accuracy(
    scores: Matrix, at: Sequence[int | None], ends: Sequence[bool], phases: Phases
) -> float | None:
    """Return mean_j min_e scores[e][j] over tasks not trained in the last phase that has begun.

    The minimum is over the evaluations e after the end of the last phase that trains j. It shows a
    drop that a later recovery hides, and more of it the more often one evaluates. De Lange et al.
    2023, "Continual evaluation for lifelong learning: identifying the stability gap", section 3
    (min-ACC).

    Args:
        scores: The score on every task at each evaluation.
        at: The phase in progress at each evaluation; None before training.
        ends: Whether each evaluation ends its phase.
        phases: The tasks of each phase.
    """
    present = max((phase for phase in at if phase is not None), default=-1)
    begun = phases[: present + 1]
    minima = []
    for j in _trained(begun):
        own = _last(begun, j)
        if own < present:
            end = next(e for e, phase in enumerate(at) if phase == own and ends[e])
            minima.append(min(row[j] for row in scores[end + 1 :]))
    return mean(minima)


def worst_case_accuracy(
    scores: Matrix, at: Sequence[int | None], ends: Sequence[bool], phases: Phases
) -> float | None:
    """Return the worst case that trades off the present phase and the earlier ones (WC-ACC).

        1/k mean_j scores[E][j] + (1 - 1/k) min-ACC

    j are the tasks of the k-th phase, which is in progress at the last evaluation E. De Lange et
    al. 2023, section 3. Arguments as in `min_accuracy`.
    """
    present = max((phase for phase in at if phase is not None), default=-1)
    if present < 0:
        return None
    now = mean([scores[-1][j] for j in phases[present]])
    if present == 0 or now is None:
        return now
    lowest = min_accuracy(scores, at, ends, phases)
    share = 1 / (present + 1)
    return None if lowest is None else share * now + (1 - share) * lowest


def forward_transfer(S: Matrix, phases: Phases, before: Sequence[float]) -> float | None:
    """Return mean_j (S[j-1][j] - before[j]) over tasks not trained in the first phase.

    Here phase j is the first phase that trains task j. Lopez-Paz & Ranzato 2017, FWT.

    Args:
        S: The score matrix.
        phases: The tasks of each phase.
        before: The score on each task before any training.
    """
    later = [j for j in _trained(phases) if _first(phases, j) > 0]
    return mean([S[_first(phases, j) - 1][j] - before[j] for j in later])


def learning_accuracy(S: Matrix, phases: Phases) -> float | None:
    """Return mean_j S[j][j], the score right after a task's own training.

    Riemer et al. 2019, LA.
    """
    return mean([S[_last(phases, j)][j] for j in _trained(phases)])


def anytime_score(
    steps: Sequence[int], scores: Matrix, seen: Sequence[Collection[int]]
) -> float | None:
    """Return the area under the curve of the average score, divided by the number of steps.

        sum_e (t_e - t_(e-1)) * mean_j scores[e][j] / t_E   over j in seen[e]

    It measures a learner that may be asked at any time (Koh et al. 2022, "Online continual learning
    on class incremental blurry task configuration", A_AUC).

    Args:
        steps: t_e, the world steps at each evaluation e = 1 .. E.
        scores: The score on every task at each evaluation.
        seen: The ids of the tasks whose training had begun at each evaluation.
    """
    averages = [mean([row[j] for j in tasks]) for row, tasks in zip(scores, seen, strict=True)]
    if not averages or None in averages:
        return None
    spans = [now - last for now, last in zip(steps, [0, *steps[:-1]], strict=True)]
    return (
        sum(
            span * average
            for span, average in zip(spans, averages, strict=True)
            if average is not None
        )
        / steps[-1]
    )
