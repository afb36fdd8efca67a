"""What worlds, agents and the loop agree on. It imports none of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt


@dataclass(frozen=True)
class Metric:
    """What the numbers of a result are.

    Args:
        name: "accuracy", "entity F1", "score" (0 random, 1 best known) or "return".
        unit: "%" for a share, which is shown times 100; else empty.
        evaluate: `evaluate(task, labels, guesses)`, a share from 0 to 1 computed from a whole pass over
            a task's test examples, labels and guesses (N, ...). None: the mean reward.
    """

    name: str
    unit: str = ""
    evaluate: Callable[[int, npt.NDArray[Any], npt.NDArray[Any]], float] | None = field(default=None, compare=False, repr=False)

    def text(self, value: float | None, missing: str = "-") -> str:
        """`value` as people read it: one decimal of a percentage, two of a score, four digits of a return."""
        if value is None or not math.isfinite(value):
            return missing
        if self.unit == "%":
            return f"{value + 0.0:.1f}"
        return f"{value:.2f}" if self.name == "score" else f"{value:.4g}"


ACCURACY = Metric("accuracy", "%")
RETURN = Metric("return")
SCORE = Metric("score")
