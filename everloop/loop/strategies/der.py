"""Dark experience replay: matches stored outputs (DER++: labels too)."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from everloop.loop.batch import Batch
from everloop.loop.model import Model
from everloop.loop.strategies.base import Forward, Traits, check_strength
from everloop.loop.strategies.parts.rehearsal import Rehearsal


class DER(Rehearsal):
    """Replays stored examples against the outputs that the network gave when it observed them.

        loss += strength * mean (z - h(x))^2 over stored (x, z)     (Buzzega et al. 2020, eq. 6)

    z are the outputs when x was observed. The paper calls strength alpha. The mean is over examples
    and outputs, as in the authors' code; the paper has a sum over outputs. For tags it is over the
    outputs of tokens that have one. Examples are replayed
    from all tasks, including the current one, so task boundaries need not be known.

    Args:
        strength: Alpha, the weight of the loss against stored outputs, 0 or more; 0 is plain
            training. The authors' code uses 0.2 to 1, chosen for each data set.
        capacity: Number of examples stored in total, 1 or more.
        batch_size: Number of stored examples replayed with each update, 1 or more.
        memory: Rule for what is stored: reservoir, class-balanced, ring, uncertain or
            informative.
        seed: Seed for choosing which examples are stored and replayed, 0 or more.
    """

    name = "der"
    traits: ClassVar[Traits] = Traits(
        boundaries=False, examples=True, class_incremental=True, rank={"class": 5}
    )

    stores_output: ClassVar[bool] = True

    def __init__(
        self,
        strength: float = 0.5,
        capacity: int = 1000,
        batch_size: int = 64,
        memory: str = "reservoir",
        seed: int = 0,
    ) -> None:
        super().__init__(strength, capacity, batch_size, memory, seed)

    def recall(self, model: Model) -> Batch | None:
        return self.draw(model)

    def replay_loss(self, replayed: Forward, model: Model) -> Tensor:
        return self.strength * _dark_loss(replayed.batch, replayed.output.prediction, model)


class DERPlusPlus(DER):
    """DER with a second loss against labels, on another sample of stored examples.

        loss += label_strength * mean loss against labels            (Buzzega et al. 2020, eq. 7)

    The paper calls label_strength beta. In control the labels are the policy's outputs when the
    example was observed, and the loss is their KL divergence from the current outputs. Everything
    else is as in DER.

    Args:
        strength: Alpha, the weight of the loss against stored outputs, 0 or more. The authors' code
            uses 0.1 to 1, chosen for each data set.
        label_strength: Beta, the weight of the loss against stored labels, 0 or more. If both are
            0, this is plain training. The authors' code uses 0.5 or 1.
        capacity: Number of examples stored in total, 1 or more.
        batch_size: Number of stored examples replayed with each update, 1 or more.
        memory: Rule for what is stored: reservoir, class-balanced, ring, uncertain or
            informative.
        seed: Seed for choosing which examples are stored and replayed, 0 or more.
    """

    name = "derpp"
    traits: ClassVar[Traits] = replace(DER.traits, rank={"control": 4, "class": 2, "other": 2})

    def __init__(
        self,
        strength: float = 0.5,
        label_strength: float = 0.5,
        capacity: int = 1000,
        batch_size: int = 64,
        memory: str = "reservoir",
        seed: int = 0,
    ) -> None:
        super().__init__(strength, capacity, batch_size, memory, seed)
        self.label_strength = check_strength(label_strength, "label_strength")

    @property
    def active(self) -> bool:
        return self.strength > 0 or self.label_strength > 0

    def recall(self, model: Model) -> Batch | None:
        # Examples are drawn with replacement, so the two halves of one draw are independent.
        return self.draw(model, count=2 * self.batch_size)

    def replay_loss(self, replayed: Forward, model: Model) -> Tensor:
        n, h, y = self.batch_size, replayed.output.prediction, replayed.batch.target
        assert y is not None
        dark = _dark_loss(replayed.batch[:n], h[:, :n], model)
        labels = model.loss_of(h[:, n:], y[:, n:])
        return self.strength * dark + self.label_strength * labels


def _dark_loss(stored: Batch, h: Tensor, model: Model) -> Tensor:
    """Return the mean of (z - h)^2; for tags, over the tokens that have one.

    z is nan where the network had no such output yet.
    """
    z = stored.output
    assert z is not None
    known = torch.where(z.isnan(), h.detach(), z)
    return model.mean_over_outputs(F.mse_loss(h, known, reduction="none"), stored.target)
