"""Gradients of a loss, and their inner products."""

from __future__ import annotations

import torch

from everloop.loop.strategies.parts.gradients import gradient, inner


def test_a_weight_that_the_loss_does_not_use_has_a_zero_gradient() -> None:
    a, b = torch.tensor([1.0, 2.0], requires_grad=True), torch.ones(2, 3, requires_grad=True)
    found = gradient((a**3).sum(), [b, a])
    assert torch.equal(found[0], torch.zeros(2, 3))
    assert found[1].tolist() == [3.0, 12.0]  # d a^3 / da = 3 a^2
    assert a.grad is None


def test_the_inner_product_is_the_sum_over_all_weights() -> None:
    a = [torch.tensor([1.0, 2.0]), torch.tensor([[3.0], [-1.0]])]
    b = [torch.tensor([4.0, 0.5]), torch.tensor([[2.0], [7.0]])]
    assert float(inner(a, b)) == 4 + 1 + 6 - 7
