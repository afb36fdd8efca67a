"""Gradients of losses other than the training loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def gradient(loss: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """Return d loss / d weights, 0 for weights without influence. `.grad` is unchanged."""
    found = torch.autograd.grad(loss, weights, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(weights, found, strict=True)]


def inner(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """Return the inner product of two gradients."""
    products = [torch.dot(x.flatten(), y.flatten()) for x, y in zip(a, b, strict=True)]
    return torch.stack(products).sum()
