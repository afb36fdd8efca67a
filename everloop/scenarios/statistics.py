"""Means over seeds with confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % confidence interval (Student's t, n - 1 degrees of freedom).

    Args:
        n: Number of values.
        mean: Their mean; None without values.
        half: Half the width of the interval; None with fewer than two values.
    """

    n: int
    mean: float | None
    half: float | None

    @property
    def low(self) -> float | None:
        """The lower end of the interval."""
        return None if self.mean is None or self.half is None else self.mean - self.half

    @property
    def high(self) -> float | None:
        """The upper end of the interval."""
        return None if self.mean is None or self.half is None else self.mean + self.half


def estimate(values: Sequence[float]) -> Estimate:
    """Return mean ± t_(0.975, n - 1) s / sqrt(n), where s is the sample's standard deviation."""
    from scipy.stats import t

    n = len(values)
    if n == 0:
        return Estimate(0, None, None)
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(1, mean, None)
    s = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    return Estimate(n, mean, float(t.ppf((1 + LEVEL) / 2, n - 1)) * s / math.sqrt(n))


def paired(values: Mapping[int, float], baseline: Mapping[int, float]) -> Estimate:
    """Return the mean of values - baseline over the seeds in both, as in a paired t-test.

    Pairing cancels what a seed adds to both values.

    Args:
        values: Seed -> value.
        baseline: Seed -> value.
    """
    return estimate(
        [values[seed] - baseline[seed] for seed in sorted(values.keys() & baseline.keys())]
    )
