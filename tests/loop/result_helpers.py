"""Results with given scores, without a run."""

from __future__ import annotations

from everloop.contract import ACCURACY, Metric
from everloop.loop import Evaluation, Result


def finished_result(
    names: list[str],
    scores: list[list[float]],
    phases: list[list[int]] | None = None,
    metric: Metric = ACCURACY,
) -> Result:
    """A result with an evaluation before training, `scores[0]`, and one at the end of each phase.

    Phases have 10 steps. By default, there is one phase for each task.
    """
    if phases is None:
        phases = [[j] for j in range(len(names))]
    result = Result(names, phases, metric, scenario="made")
    for i, row in enumerate(scores):
        phase = i - 1 if i else None
        result.evaluations.append(Evaluation(10 * i, phase, phase is not None, row, row))
    return result
