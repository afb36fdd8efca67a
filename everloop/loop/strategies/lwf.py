"""Learning without forgetting (LwF): distils the previous network's outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from everloop.contract import Task
from everloop.loop.batch import Batch
from everloop.loop.model import Model
from everloop.loop.strategies.base import (
    Forward,
    Strategy,
    Traits,
    check_choice,
    check_range,
    check_strength,
)
from everloop.loop.strategies.parts.teacher import Teacher

TEMPERATURE = 2.0
"""The default temperature, that of Li & Hoiem."""

NEVER = -1e4
"""A logit whose probability is 0. It is finite, so that 0 * NEVER is 0."""


class LwF(Strategy):
    """Keeps outputs for past tasks close to the network's outputs at the last task's end.

        loss += strength * sum over ended tasks k of T^2 KL(softmax(z_k* / T) || softmax(z_k / T))

    Li & Hoiem 2017, eq. 2-4. If each task has its own head, z_k are the outputs of task k's head.
    Otherwise z_k are the outputs for all classes seen in ended tasks, and each ended task has the
    same weight as the current one, as in van de Ven et al. 2022. z_k* are the outputs of the
    network at the last task's end. In control the loss is the KL divergence between the policies.
    For tags it is the mean over the tokens that have one, like the task loss.

    No examples are stored, and the only extra forward pass is the old network's. Use it together
    with replay (`lwf,replay`) for LwF with replay.

    Memory: a copy of the network.

    Args:
        strength: Weight of the distillation loss, 0 or more; 0 is plain training. 1 gives each
            ended task the weight of the current one.
        temperature: Temperature T of the softmax, 0.001 or more. Used for classes, tags and
            discrete actions. 2 is the paper's.
        outputs: Outputs distilled by a single head: past (classes of ended tasks) or all. With all,
            the old network's low probabilities for the new classes are distilled too, as in the
            code of van de Ven et al. 2022.
    """

    name = "lwf"
    traits: ClassVar[Traits] = Traits(copies=1, several_passes=True, rank={"other": 5})
    state = ("teacher", "past", "seen", "old")

    def __init__(
        self,
        strength: float = 1.0,
        temperature: float = TEMPERATURE,
        outputs: Literal["past", "all"] = "past",
    ) -> None:
        check_range("temperature", temperature, 1e-3)
        check_choice("outputs", outputs, ("past", "all"))
        self.strength = check_strength(strength)
        self.temperature, self.outputs = temperature, outputs
        self.teacher = Teacher()
        self.past: list[int] = []  # IDs of ended tasks
        self.seen: Tensor | None = None  # bool (P,), classes observed so far
        self.old: Tensor | None = None  # bool (P,), classes observed in ended tasks

    def check(self, model: Model) -> None:
        if model.sequence_length > 1:
            raise ValueError("lwf distils single steps; for a recurrent network use replay")
        if self.outputs == "all" and model.classes is None:
            raise ValueError(
                "outputs is 'all', but without classes all outputs are distilled anyway; leave it "
                "out"
            )
        if not model.likelihood.discrete and self.temperature != TEMPERATURE:
            raise ValueError(
                f"temperature is {self.temperature}, but only classes and discrete actions have "
                "one; leave it out"
            )

    def begin_task(self, task: Task, model: Model) -> None:
        self.past = [k for k in self.past if k != task.id]

    def loss(self, fresh: Forward | None, replayed: Forward | None, model: Model) -> Tensor | None:
        if fresh is None:
            return None
        batch, output = fresh
        self._see(model, batch)
        if self.teacher.module is None or not self.past:
            return None
        with torch.no_grad():
            then = model.forward(batch, self.teacher.module)
        p, q, target = then.prediction, output.prediction, batch.target
        if output.heads is not None and then.heads is not None:
            # The outputs of each past head as more examples: (T, B, K, P) -> (T, B K, P).
            p, q = (heads[:, :, self.past].flatten(1, 2) for heads in (then.heads, output.heads))
            target = None if target is None else target.repeat_interleave(len(self.past), 1)
        elif self.old is not None and self.outputs == "past":
            p, q = (z.masked_fill(~self.old, NEVER) for z in (p, q))
        T = self.temperature if model.likelihood.discrete else 1.0
        return self.strength * len(self.past) * T**2 * model.mean_kl(p / T, q / T, target)

    def _see(self, model: Model, batch: Batch) -> None:
        """Record the classes in `batch`."""
        if model.classes is None or batch.target is None:
            return
        if self.seen is None:
            self.seen = torch.zeros(model.classes, dtype=torch.bool, device=batch.target.device)
        self.seen[batch.target.flatten()] = True

    def end_task(self, task: Task, batches: Sequence[Batch], model: Model) -> None:
        self.teacher.copy(model)
        self.past = [*self.past, task.id]
        self.old = None if self.seen is None else self.seen.clone()

    def _restored(self, model: Model) -> None:
        self.teacher.restore(model)
