"""`ResettableGRU` is `nn.GRU` in a loop over time that zeroes the state where an episode starts."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from network_helpers import boolean_rows
from torch import Tensor

from everloop.agents import ResettableGRU

D, H = 3, 5


def memory() -> ResettableGRU:
    torch.manual_seed(0)
    return ResettableGRU(D, H)


def random_case(start: list[list[bool]], seed: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    T, B = len(start), len(start[0])
    return (
        torch.randn(T, B, D, requires_grad=True),
        torch.randn(B, H, requires_grad=True),
        torch.tensor(start),
    )


def loop(gru: ResettableGRU, x: Tensor, state: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    outputs = []
    for t in range(len(x)):
        state = torch.where(start[t][:, None], torch.zeros_like(state), state)
        output, last = gru.gru(x[t : t + 1], state[None])
        outputs.append(output)
        state = last[0]
    return torch.cat(outputs), state


def gradients(
    gru: ResettableGRU, output: Tensor, last: Tensor, x: Tensor, state: Tensor
) -> list[Any]:
    """Return the gradients of a random linear function of all outputs."""
    torch.manual_seed(1)
    loss = (output * torch.randn(output.shape)).sum() + (last * torch.randn(last.shape)).sum()
    return list(torch.autograd.grad(loss, [x, state, *gru.parameters()]))


@given(boolean_rows(12), st.integers(0, 99))
@settings(deadline=None, max_examples=50)
def test_outputs_state_and_gradients_equal_a_loop_over_time(
    start: list[list[bool]], seed: int
) -> None:
    gru = memory()
    x, state, starts = random_case(start, seed)
    output, last = gru(x, state, starts)
    expected, expected_last = loop(gru, x, state, starts)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(last, expected_last, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(last, output[-1], rtol=0, atol=0)
    for found, wanted in zip(
        gradients(gru, output, last, x, state),
        gradients(gru, expected, expected_last, x, state),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 99))
@settings(deadline=None, max_examples=20)
def test_without_starts_the_outputs_are_those_of_nn_gru(T: int, B: int, seed: int) -> None:
    gru = memory()
    x, state, start = random_case([[False] * B] * T, seed)
    output, last = gru(x, state, start)
    expected, expected_last = gru.gru(x, state[None])
    assert torch.equal(output, expected)
    assert torch.equal(last, expected_last[0])


@pytest.mark.parametrize("T", [1, 4])
@pytest.mark.parametrize("later", [False, True])
def test_a_start_in_the_first_step_discards_the_given_state(T: int, later: bool) -> None:
    """Only in that sequence, whose given state gets no gradient."""
    gru = memory()
    start = [[True, False, True]] + [[later, False, False]] * (T - 1)
    x, state, starts = random_case(start, 0)
    output, last = gru(x, state, starts)
    kept = torch.tensor([False, True, False])
    other_output, other_last = gru(
        x, torch.where(kept[:, None], state, 100 * torch.randn(3, H)), starts
    )
    assert torch.equal(output, other_output)
    assert torch.equal(last, other_last)
    (gradient,) = torch.autograd.grad(output.sum(), state)
    assert not gradient[~kept].any()
    assert gradient[kept].all()


def test_a_start_discards_an_infinite_or_nan_state() -> None:
    gru = memory()
    x, _, start = random_case([[True, True]], 0)
    expected, _ = gru(x, torch.zeros(2, H), start)
    output, _ = gru(x, torch.tensor([[torch.inf] * H, [torch.nan] * H]), start)
    assert torch.equal(output, expected)


@given(boolean_rows(12), st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_an_output_depends_only_on_inputs_since_the_last_start(
    start: list[list[bool]], seed: int
) -> None:
    gru = memory()
    x, state, starts = random_case(start, seed)
    T, B = starts.shape
    t, b = seed % T, seed % B
    (gradient,) = torch.autograd.grad(gru(x, state, starts)[0][t, b].sum(), x)
    began = [s for s in range(t + 1) if starts[s, b]]
    first = began[-1] if began else 0
    reached = gradient.abs().sum(-1) > 0
    expected = torch.zeros(T, B, dtype=torch.bool)
    expected[first : t + 1, b] = True
    assert torch.equal(reached, expected)
