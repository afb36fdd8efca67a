"""Herding: the mean of the exemplars stays close to the mean of the class."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from everloop.loop import herding


@settings(deadline=None, max_examples=60)
@given(n=st.integers(1, 12), size=st.integers(1, 4), data=st.data())
def test_each_exemplar_brings_the_mean_closest_to_the_mean_of_all(
    n: int, size: int, data: st.DataObject
) -> None:
    count, seed = data.draw(st.integers(1, n)), data.draw(st.integers(0, 2**32))
    features = torch.randn(
        n, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    order = herding(features, count)
    picked: list[int] = []
    for pick in order.tolist():
        distances = {
            i: float((features[[*picked, i]].mean(0) - features.mean(0)).norm())
            for i in range(n)
            if i not in picked
        }
        assert distances[pick] <= min(distances.values()) + 1e-12
        picked.append(pick)
    assert order.dtype == torch.int64
    assert len(set(picked)) == count
    assert order.tolist() == herding(features, n)[:count].tolist(), (
        "a smaller count gives the first of a larger one"
    )


@pytest.mark.parametrize("count", [2, 5, 10, 30])
def test_the_mean_of_exemplars_is_closer_than_that_of_random_choices(count: int) -> None:
    g = torch.Generator().manual_seed(0)
    features = torch.randn(60, 3, generator=g, dtype=torch.float64)

    def error(rows: torch.Tensor) -> float:
        return float((features[rows].mean(0) - features.mean(0)).norm())

    at_random = [error(torch.randperm(60, generator=g)[:count]) for _ in range(50)]
    assert error(herding(features, count)) < min(at_random)


def test_identical_examples_are_each_picked_once() -> None:
    assert sorted(herding(torch.ones(5, 2), 5).tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("count", [-1, 0, 4])
def test_a_number_of_exemplars_out_of_range_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"^count is {count}; it must be from 1 to 3$"):
        herding(torch.zeros(3, 2), count)
