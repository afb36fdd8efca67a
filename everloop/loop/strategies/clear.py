"""CLEAR: behavioural cloning of the policy and value on stored experience."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from everloop.loop.batch import Batch
from everloop.loop.model import Model
from everloop.loop.strategies.base import Forward, Traits, check_strength
from everloop.loop.strategies.parts.rehearsal import Rehearsal
from everloop.loop.strategies.parts.sample import sample_of


class CLEAR(Rehearsal):
    """Keeps the policy and the value close to their stored outputs on stored experience.

        loss += strength * mean KL(pi_stored || pi) + value_strength * mean (V - V_stored)^2
                                                       (Rolnick et al. 2019, section 3.1)

    Examples are replayed from all tasks, including the current one, so task boundaries need not be
    known. This is only the cloning half of CLEAR. The other half, V-trace on stored rewards, would
    need an off-policy algorithm instead of PPO.

    Args:
        strength: Weight of the policy cloning loss, 0 or more. The paper uses 0.01 together with
            V-trace.
        value_strength: Weight of the value cloning loss, 0 or more. By default 0.5, or 0 if
            `strength` is 0 or the network has no value head, as under SAC and DQN. The paper uses
            0.005 together with V-trace. If both weights are 0, this is plain training.
        capacity: Number of examples stored in total, 1 or more.
        batch_size: Number of stored examples replayed with each update, 1 or more.
        memory: Rule for what is stored: reservoir, class-balanced, ring, uncertain or
            informative.
        seed: Seed for choosing which examples are stored and replayed, 0 or more.
    """

    name = "clear"
    traits: ClassVar[Traits] = Traits(
        boundaries=False, examples=True, streams=False, rank={"control": 3}
    )

    stores_output: ClassVar[bool] = True

    def __init__(
        self,
        strength: float = 1.0,
        value_strength: float | None = None,
        capacity: int = 1000,
        batch_size: int = 64,
        memory: str = "reservoir",
        seed: int = 0,
    ) -> None:
        super().__init__(strength, capacity, batch_size, memory, seed)
        if value_strength is not None:
            check_strength(value_strength, "value_strength")
        self.value_strength = value_strength

    @property
    def active(self) -> bool:
        return self.strength > 0 or bool(self.value_strength)

    def check(self, model: Model) -> None:
        super().check(model)
        if model.labelled:
            raise ValueError(
                "clear needs a policy and a value function; on labelled streams use replay or derpp"
            )
        if self.value_strength and model.world is not None:
            with torch.no_grad(), model.evaluating():
                value = model.forward(sample_of(model.world, model.device)).value
            if value is None:
                raise ValueError(
                    f"value_strength is {self.value_strength}, but the network has no value head; "
                    "leave it out"
                )

    def store(self, rows: npt.NDArray[np.int64], batch: Batch, model: Model) -> None:
        with torch.no_grad(), model.evaluating():
            output = model.forward(batch)
        target, value = output.prediction, output.value
        stored = replace(batch, target=target, value=value, action=None, output=None)
        self.memory.write(rows, stored.to_items())

    def recall(self, model: Model) -> Batch | None:
        return self.draw(model)

    def replay_loss(self, replayed: Forward, model: Model) -> Tensor:
        stored, output = replayed
        assert stored.target is not None
        loss = self.strength * model.likelihood.kl(stored.target, output.prediction).mean()
        if output.value is not None and stored.value is not None:
            strength = 0.5 if self.value_strength is None else self.value_strength
            loss = loss + strength * (output.value - stored.value).square().mean()
        return loss
