"""Means and intervals, against SciPy and against invariants."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from everloop.scenarios.statistics import Estimate, estimate, paired

SEEDS = st.integers(0, 9)
NUMBERS = st.floats(-1e3, 1e3).map(lambda x: round(x, 6))


@given(st.lists(NUMBERS, min_size=2, max_size=12))
def test_the_interval_is_students(values: list[float]) -> None:
    found = estimate(values)
    spread = stats.sem(values)
    assert found.n == len(values)
    assert found.mean == pytest.approx(sum(values) / len(values), abs=1e-9)
    if spread > 1e-9:
        low, high = stats.t.interval(
            0.95, len(values) - 1, loc=sum(values) / len(values), scale=spread
        )
        assert (found.low, found.high) == (
            pytest.approx(low, rel=1e-7, abs=1e-7),
            pytest.approx(high, rel=1e-7, abs=1e-7),
        )


def test_one_value_has_no_interval_and_none_no_mean() -> None:
    assert estimate([3.0]) == Estimate(1, 3.0, None)
    assert estimate([]) == Estimate(0, None, None)
    assert (estimate([3.0]).low, estimate([]).high) == (None, None)


@given(pairs=st.lists(st.tuples(NUMBERS, NUMBERS), min_size=2, max_size=10))
def test_a_paired_difference_is_that_of_the_paired_t_test(pairs: list[tuple[float, float]]) -> None:
    a, b = ({i: pair[k] for i, pair in enumerate(pairs)} for k in (0, 1))
    found = paired(a, b)
    differences = [x - y for x, y in pairs]
    if stats.sem(differences) > 1e-6:
        interval = stats.ttest_rel(list(a.values()), list(b.values())).confidence_interval(0.95)
        assert (found.low, found.high) == (
            pytest.approx(interval.low, rel=1e-6, abs=1e-6),
            pytest.approx(interval.high, rel=1e-6, abs=1e-6),
        )


@given(values=st.lists(NUMBERS, min_size=2, max_size=10), constant=NUMBERS)
def test_a_constant_moves_the_mean_and_nothing_else(values: list[float], constant: float) -> None:
    plain, moved = estimate(values), estimate([value + constant for value in values])
    assert plain.mean is not None
    assert (moved.n, moved.mean) == (plain.n, pytest.approx(plain.mean + constant, abs=1e-9))
    assert moved.half == pytest.approx(plain.half, abs=1e-9)


@given(
    a=st.dictionaries(st.integers(0, 9), NUMBERS),
    b=st.dictionaries(st.integers(0, 9), NUMBERS),
    offset=st.dictionaries(st.integers(0, 9), NUMBERS),
)
def test_what_a_seed_adds_to_both_cancels(
    a: dict[int, float], b: dict[int, float], offset: dict[int, float]
) -> None:
    moved = [
        {seed: value + offset.get(seed, 0.0) for seed, value in values.items()} for values in (a, b)
    ]
    plain, shifted = paired(a, b), paired(*moved)
    assert plain.n == shifted.n == len(a.keys() & b.keys())
    for x, y in ((plain.mean, shifted.mean), (plain.half, shifted.half)):
        assert (x is None) == (y is None)
        assert x is None or y is None or math.isclose(x, y, abs_tol=1e-6)
