"""Elastic weight consolidation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from everloop.loop.batch import Batch
from everloop.loop.fisher import diagonal_fisher
from everloop.loop.strategies.base import Strategy, check_strength
from everloop.loop.world import Task

if TYPE_CHECKING:
    from everloop.loop.learner import Learner


class EWC(Strategy):
    """Hold each weight where it was, as firmly as the old tasks' likelihood depends on it.

        penalty = strength / 2 * sum_k sum_i F_ki (w_i - w*_ki)^2          (Kirkpatrick et al. 2017, eq. 3)

    F_k is the diagonal Fisher information at the end of task k, w*_k the weights there. The gradient is
    added in closed form. A sum of quadratics is one quadratic, so two numbers a weight hold every anchor:

        grad += strength * P * (w - c)
        separate:  c <- (P c + F w*) / (P + F),  P <- P + F        exactly the sum above
        online:    c <- w*,                      P <- decay * P + F   (Schwarz et al. 2018, section 3.2)

    strength: lambda, from 0. With 0 training is plain, to the last bit.
    anchors: "separate", or "online" with `decay` in [0, 1] (gamma in the paper).
    fisher: "sampled" draws labels or actions from the model, "empirical" takes those in the data.
    examples: how many of the examples at a task's end the Fisher information is averaged over.
    Memory: two copies of the weights, whatever the number of tasks. Weights that the likelihood does not
    depend on, such as a value head's, stay free. Raises ValueError for arguments outside these ranges.
    """

    def __init__(
        self,
        strength: float = 100.0,
        anchors: Literal["separate", "online"] = "separate",
        decay: float = 1.0,
        fisher: Literal["sampled", "empirical"] = "sampled",
        examples: int = 512,
        seed: int = 0,
    ) -> None:
        if anchors not in ("separate", "online"):
            raise ValueError(f"anchors is {anchors!r}, allowed: separate, online")
        if fisher not in ("sampled", "empirical"):
            raise ValueError(f"fisher is {fisher!r}, allowed: sampled, empirical")
        if not 0 <= decay <= 1:
            raise ValueError(f"decay is {decay}, allowed: 0 to 1")
        if examples < 1:
            raise ValueError(f"examples is {examples}, allowed: 1 or more")
        self.strength = check_strength(strength)
        self.anchors, self.decay, self.fisher, self.examples = anchors, decay, fisher, examples
        self.generator = torch.Generator().manual_seed(seed)
        self.precision: list[Tensor] = []  # P
        self.center: list[Tensor] = []  # c

    def edit_gradients(self, learner: Learner, batch: Batch | None) -> None:
        if not self.precision or self.strength == 0:
            return
        rows = zip(_parameters(learner), self.center, self.precision, strict=True)
        live = [row for row in rows if row[0].grad is not None]
        if not live:
            return
        weights, centers, precisions = zip(*live, strict=True)
        with torch.no_grad():
            torch._foreach_addcmul_([w.grad for w in weights], torch._foreach_sub(weights, centers), precisions, self.strength)

    def end_task(self, task: Task, learner: Learner, batches: Sequence[Batch]) -> None:
        if self.strength == 0:
            return
        fisher = diagonal_fisher(learner, _first(batches, self.examples), self._draws(learner))
        weights = [p.detach().clone() for p in _parameters(learner)]
        if not self.precision:
            self.precision, self.center = fisher, weights
        elif self.anchors == "online":
            self.precision = [self.decay * P + F for P, F in zip(self.precision, fisher, strict=True)]
            self.center = weights
        else:
            rows = list(zip(self.precision, self.center, fisher, weights, strict=True))
            # the precision-weighted mean, written so that a weight without any precision keeps its center
            self.center = [c + (F / (P + F).clamp(min=torch.finfo(F.dtype).tiny)) * (w - c) for P, c, F, w in rows]
            self.precision = [P + F for P, _, F, _ in rows]

    def _draws(self, learner: Learner) -> torch.Generator | None:
        """A generator where the model is, or None for the empirical Fisher information."""
        if self.fisher == "empirical":
            return None
        seed = int(torch.randint(2**62, (), generator=self.generator))
        return torch.Generator(learner.device).manual_seed(seed)

    def state_dict(self) -> dict[str, Any]:
        return {"precision": self.precision, "center": self.center, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.precision, self.center = list(state["precision"]), list(state["center"])
        self.generator.set_state(state["generator"])


def _parameters(learner: Learner) -> list[torch.nn.Parameter]:
    return [p for p in learner.module.parameters() if p.requires_grad]


def _first(batches: Sequence[Batch], examples: int) -> list[Batch]:
    """The first `examples` examples of `batches`."""
    taken = []
    for batch in batches:
        if examples > 0:
            taken.append(batch[:examples])
            examples -= len(taken[-1])
    return taken
