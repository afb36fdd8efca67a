"""A small module with its optimizer and a batch, and a plain step, for attached loops."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def make_small(seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer, Tensor, Tensor]:
    """A classifier of vectors, its optimizer, eight examples and their labels."""
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    return (
        module,
        torch.optim.SGD(module.parameters(), lr=0.1),
        torch.randn(8, 4),
        torch.randint(3, (8,)),
    )


def plain_step(module: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    optimizer.zero_grad()
    nn.functional.cross_entropy(module(x), y).backward()
    optimizer.step()
