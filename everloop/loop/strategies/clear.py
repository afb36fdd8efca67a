"""CLEAR: clones the policy and value stored with past experience."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from everloop.loop.batch import Batch
from everloop.loop.strategies.base import Traits, check_strength
from everloop.loop.strategies.rehearsal import Rehearsal

if TYPE_CHECKING:
    from everloop.loop.learner import Learner, NetworkOutput


class CLEAR(Rehearsal):
    """On stored experience, keep doing and expecting what the agent did and expected when it was stored.

        loss += strength * mean KL(pi_stored || pi) + value_strength * mean (V - V_stored)^2   (Rolnick et al. 2019, section 3.1)

    Drawn from everything stored, the task at hand included: boundaries need not be known. Only the cloning half of
    CLEAR: its off-policy half, V-trace on stored rewards, would need another algorithm than PPO.

    Args:
        strength: The weight of the policy's loss, 0 or more; 0 is plain training. The paper has 0.01, beside
            V-trace.
        value_strength: The weight of the value's loss, 0 or more. The paper has 0.005, beside V-trace.
        capacity: How many sequences are stored in all, 1 or more.
        batch_size: How many stored examples are replayed with each update, 1 or more.
        memory: The rule that says which examples are stored: reservoir, class-balanced, ring, uncertain or
            informative.
        seed: Of its own random draws.
    """

    traits: ClassVar[Traits] = Traits(boundaries=False, examples=True, streams=False)

    stores_output: ClassVar[bool] = True

    def __init__(
        self,
        strength: float = 1.0,
        value_strength: float = 0.5,
        capacity: int = 1000,
        batch_size: int = 64,
        memory: str = "reservoir",
        seed: int = 0,
    ) -> None:
        super().__init__(strength, capacity, batch_size, memory, seed)
        self.value_strength = check_strength(value_strength, "value_strength")

    def check(self, learner: Learner) -> None:
        super().check(learner)
        if learner.labelled:
            raise ValueError("clear clones a policy and its values, allowed in streams: replay, derpp")

    def store(self, rows: npt.NDArray[np.int64], batch: Batch, learner: Learner) -> None:
        with torch.no_grad(), learner.judging():
            output = learner.forward(batch)
        now = replace(batch, target=output.prediction, value=output.value, action=None, output=None)
        self.memory.write(rows, now.to_items())

    def recall(self, learner: Learner) -> Batch | None:
        return self.draw(learner) if self.strength else None

    def recall_loss(self, learner: Learner, stored: Batch, output: NetworkOutput) -> Tensor:
        assert stored.target is not None
        loss = self.strength * learner.likelihood.kl(stored.target, output.prediction).mean()
        if output.value is not None and stored.value is not None:
            loss = loss + self.value_strength * (output.value - stored.value).square().mean()
        return loss
