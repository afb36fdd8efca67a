"""The public check of strategies: built-in ones pass, and each broken promise is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from everloop.loop import DER, EWC, Learner, PackNet, Strategy
from everloop.loop.batch import Batch
from everloop.scenarios import check_strategy


class Noisy(Strategy):
    """Adds noise to every gradient."""

    def edit_gradients(self, batch: Batch, learner: Learner) -> None:
        for w in learner.weights().values():
            if w.grad is not None:
                w.grad += 1e-3 * torch.randn_like(w)


class Momentum(Strategy):
    """Adds momentum to the gradients without declaring its state."""

    def __init__(self) -> None:
        self.sums: dict[str, Any] = {}

    def edit_gradients(self, batch: Batch, learner: Learner) -> None:
        for name, w in learner.weights().items():
            if w.grad is not None:
                self.sums[name] = 0.9 * self.sums.get(name, 0.0) + w.grad
                w.grad = self.sums[name].clone()


class Declared(Momentum):
    state = ("sums",)


class Shared(Momentum):
    """Saves its tensors without copying them, and changes them later."""

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self.sums}

    def load_state_dict(self, state: Any, learner: Learner) -> None:
        self.sums = state["sums"]


class Fixed(Strategy):
    """Fails if the network gets new weights."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def edit_gradients(self, batch: Batch, learner: Learner) -> None:
        self.names = self.names or list(learner.weights())
        assert self.names == list(learner.weights()), "other weights than at first"
        for w in learner.weights().values():
            if w.grad is not None:
                w.grad *= 0.5 if w.ndim > 1 else 1.0


class Idle(Strategy):
    pass


@pytest.mark.parametrize(
    "make",
    [
        lambda: EWC(100.0),
        lambda: DER(capacity=40, batch_size=8),
        lambda: PackNet(share=0.5, retrain_steps=5, batch_size=16),
        Declared,
    ],
    ids=["ewc", "der", "packnet", "own"],
)
def test_a_strategy_that_keeps_its_promises_passes(make: Callable[[], Strategy]) -> None:
    check_strategy(make)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (Idle, "Idle changes nothing"),
        (Noisy, "Noisy draws from torch's global generator"),
        (Momentum, "Momentum resumed from a saved state ends at other weights"),
        (Shared, "a saved state of Shared changes while training continues; save copies"),
        (Fixed, "other weights than at first"),
    ],
)
def test_each_broken_promise_is_named(make: Callable[[], Strategy], said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        check_strategy(make)
