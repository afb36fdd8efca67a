"""MIR: replays the stored examples that the next update would hurt most."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from everloop.loop.batch import Batch
from everloop.loop.model import Model
from everloop.loop.strategies.base import Traits, check_range
from everloop.loop.strategies.parts.rehearsal import Rehearsal


class MIR(Rehearsal):
    """Replays the stored examples whose loss the next update would increase most.

        w' = w - lr * gradient of the fresh batch
        sample `candidates` stored examples without replacement
        choose the `batch_size` of them with the largest l(f(x; w'), y) - l(f(x; w), y)
        loss += strength * their mean loss            (Aljundi et al. 2019, section 3.1, eq. 1)

    The candidates are drawn before the fresh batch is stored. w' is a step of plain gradient
    descent for any optimizer, with the optimizer's learning rate times `lookahead`. Both losses l
    are computed in evaluation mode, for example without dropout.

    Cost: two more forward passes over the candidates in every update.

    Args:
        strength: Weight of the replay loss, 0 or more; 0 is plain training.
        capacity: Number of examples stored in total, 1 or more.
        batch_size: Number of stored examples replayed with each update, 1 or more. The authors'
            code uses 10, as many as there are fresh ones.
        candidates: Number of stored examples compared with each update, at least batch_size. The
            authors' code uses 50, five times the batch; twice the batch costs less.
        lookahead: Length of the look-ahead step in units of the learning rate, 0 or more. 1 is the
            paper's.
        memory: Rule for what is stored: reservoir, class-balanced, ring, uncertain or
            informative.
        seed: Seed for choosing which examples are stored and replayed, 0 or more.
    """

    name = "mir"
    traits: ClassVar[Traits] = Traits(
        boundaries=False, examples=True, class_incremental=True, rank={"class": 4, "other": 14}
    )

    def __init__(
        self,
        strength: float = 1.0,
        capacity: int = 1000,
        batch_size: int = 64,
        candidates: int = 128,
        lookahead: float = 1.0,
        memory: str = "reservoir",
        seed: int = 0,
    ) -> None:
        super().__init__(strength, capacity, batch_size, memory, seed)
        check_range("candidates", candidates, batch_size)
        check_range("lookahead", lookahead, 0)
        self.candidates, self.lookahead = candidates, lookahead

    def sample(self, model: Model) -> Batch | None:
        """Draw the candidates, without replacement."""
        if not len(self.memory):
            return None
        rows = self.memory.draw_distinct(self.candidates)
        return model.augmented(self.read(rows, model))

    def observe(self, batch: Batch, model: Model) -> None:
        self.draw_next(model)
        super().observe(batch, model)

    def edit_gradients(self, batch: Batch, model: Model) -> None:
        stored = self.take_next(model)
        if stored is None:
            return
        increase = self.interference(stored, model)
        worst = stored[increase.topk(min(self.batch_size, len(stored))).indices]
        loss = self.strength * model.loss(worst)
        loss.backward()  # type: ignore[no-untyped-call]
        model.tally.presentations += len(worst)

    @torch.no_grad()
    def interference(self, stored: Batch, model: Model) -> Tensor:
        """Return how much the next update would increase each example's loss, (B,)."""
        assert stored.target is not None
        moved: dict[nn.Parameter, Tensor] = {}
        for group in model.optimizer.param_groups:
            live = [p for p in group["params"] if p.grad is not None]
            if live:
                step = -float(group["lr"]) * self.lookahead
                ahead = torch._foreach_add(live, [p.grad for p in live], alpha=step)
                moved |= zip(live, ahead, strict=True)
        weights = {name: moved.get(p, p) for name, p in model.weights().items()}
        with model.evaluating():
            ahead_losses = model.example_losses(model.outputs_with(stored, weights), stored.target)
            return ahead_losses - model.example_losses(model.outputs(stored), stored.target)
