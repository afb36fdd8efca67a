"""Networks with two hidden layers for the tests of plasticity and meta-learning."""

from __future__ import annotations

import torch
from loop_helpers import (
    FixedLearner,
    FlatNet,
)
from torch import nn

from everloop.loop import (
    Categorical,
)


def plain_learner(layers: nn.Module, lr: float = 0.1, adam: bool = False) -> FixedLearner:
    module = FlatNet(layers, "x").double()
    optimizer = (
        torch.optim.Adam(module.parameters(), lr=lr)
        if adam
        else torch.optim.SGD(module.parameters(), lr=lr)
    )
    return FixedLearner(module, Categorical(3), optimizer)


def two_hidden_layers(seed: int = 0, act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), act(), nn.Linear(6, 5), act(), nn.Linear(5, 3))
