"""Hard attention to the task (HAT): learned unit masks protect past tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import Tensor, nn

from everloop.contract import Task
from everloop.loop.batch import Batch
from everloop.loop.model import Model
from everloop.loop.strategies.base import Effect, Strategy, Traits, check_range
from everloop.loop.strategies.parts.per_task import PerTask, head
from everloop.loop.strategies.parts.quadratic import restore_weights, snapshot
from everloop.loop.strategies.parts.rng import generator_for
from everloop.loop.strategies.parts.unit_masks import (
    CHUNK,
    Layer,
    hidden_layers,
    inputs_used,
    unit_masks,
    weights_used,
)

LIMIT = 6.0
"""Upper bound of |e| (section 2.5)."""

FLAT = 50.0
"""A mask counts as constant where |s e| is larger (section 2.5)."""

LEAST = 16.0
"""Upper bound of -s e in a soft mask; sigmoid(-16) = 1e-7."""

EXAMPLES = 64
"""Least number of examples in a pass that finds used inputs."""


class HAT(Strategy):
    """Learns a mask over hidden units for each task, and protects the units of past tasks.

        h <- a h,   a = sigmoid(s e)                              (Serra et al. 2018, eq. 1)
        s = 1 / s_max + (s_max - 1 / s_max) (b - 1) / (B - 1)     (eq. 3)
            at update b of every B = period
        loss + sparsity sum a (1 - a^<t) / sum (1 - a^<t)         (eq. 4, 5)
            a^<t is the maximum over past tasks
        e <- e - rate s_max sigmoid(e) sigmoid(-e) dL/da          (section 2.5)
            where |s e| <= 50; |e| is at most 6
        g_ij <- (1 - min(a_i^<t, a_j^<t)) g_ij                    (eq. 2)
            for the weight from unit j to unit i

    Units are the outputs of linear layers and the channels of convolutions. A bias is protected as
    much as its unit. All other weights below the last layer, such as those of norms, belong to the
    first task. The last layer is stored at each task's end. In evaluation, `view` applies the
    task's mask and last layer. A task that returns starts with its own mask.

    Deviations: a task's mask becomes binary at its end, 1 where e > 0. Eq. 2 is applied to the step
    too, since Adam's moments move weights without a gradient. So past tasks stay exactly the same
    under any optimizer. e is updated without the optimizer and without clipping. A layer is masked
    before its activation, which is equivalent for ReLU. An input counts as used if it is not 0
    where units are off, for example after a sigmoid or a norm.

    HAT must come first in a list of strategies, since the others must see its masks.

    Memory: two copies of the weights; for each task one number per unit and a last layer.

    Args:
        masks: Mask the units; false is plain training.
        s_max: Largest slope of the mask's sigmoid, 1 or more. 400 is the paper's.
        sparsity: Weight of the penalty on used units, 0 or more. The paper calls it c and uses
            0.75.
        rate: Learning rate of the mask embeddings e, above 0. The paper uses that of the weights,
            initially 0.05.
        period: Number of updates in which the masks become binary, 1 or more. The paper uses an
            epoch, whose length is unknown here. A task should end with the last update of a period,
            when its masks are binary.
        seed: Seed for initial mask embeddings, and for the noise that finds unused inputs.
    """

    name = "hat"
    traits: ClassVar[Traits] = Traits(
        copies=2, task_id=True, several_passes=True, rank={"other": 4}
    )
    effects = frozenset({Effect.DIVIDES_WEIGHTS})
    comes_first = True
    state = (
        "e",
        "units",
        "inputs",
        "used",
        "values",
        "updates",
        "learning",
        "tasks",
        "generator",
    )

    def __init__(
        self,
        masks: bool = True,
        s_max: float = 400.0,
        sparsity: float = 0.75,
        rate: float = 0.05,
        period: int = 100,
        seed: int = 0,
    ) -> None:
        check_range("s_max", s_max, 1)
        check_range("sparsity", sparsity, 0)
        check_range("rate", rate, 1e-12)
        check_range("period", period, 1)
        self.masks, self.s_max = masks, s_max
        self.sparsity, self.rate = sparsity, rate
        self.period = period
        self.generator = torch.Generator().manual_seed(seed)
        self.tasks = PerTask()  # keys: e of the task; tensors: its last layer
        self.e: dict[str, Tensor] = {}  # mask embeddings, by layer
        self.units: dict[str, Tensor] = {}  # a^<t of each layer's outputs, by layer
        self.inputs: dict[str, Tensor] = {}  # a^<t of each layer's inputs, by layer
        self.used: dict[str, Tensor] = {}  # min(a_i^<t, a_j^<t), by weight
        self.values: dict[str, Tensor] = {}  # weights at the last task's end
        self.updates, self.learning = 0, False  # updates in the current task; False between tasks
        self._layers: dict[str, Layer] = {}

    @property
    def active(self) -> bool:
        return self.masks

    def check(self, model: Model) -> None:
        if not model.task_aware:
            raise ValueError(
                "hat needs the task ID to choose a mask; use a world that shows it (scenario_type "
                "task, task_cue)"
            )
        if not model.supports_new_weights:
            raise ValueError(
                "hat masks units, but the algorithm's target network would have no masks; use "
                "replay or ewc"
            )
        for part in model.module.modules():
            if isinstance(part, (nn.RNNBase, nn.RNNCellBase)):
                raise ValueError(
                    "hat masks units of linear layers and convolutions only; use a network without "
                    "a recurrent layer"
                )
            if isinstance(part, nn.modules.batchnorm._BatchNorm) and (
                part.training or any(p.requires_grad for p in part.parameters())
            ):
                raise ValueError("batch norm undoes the masks of hat; use norm group")
        self._layers = hidden_layers(model)
        if not self._layers:
            raise ValueError(
                "hat finds no hidden units; use a network with a linear layer or a convolution "
                "below the last layer"
            )

    def _restored(self, model: Model) -> None:
        self._show(self._now())

    def begin_task(self, task: Task, model: Model) -> None:
        before = self.tasks.begin(task, model, resume=True)
        for name, a in self._masks().items():
            drawn = torch.randn(len(a), generator=self.generator).to(a)
            self.e[name] = drawn if before is None else before[name].clone()
            self.units.setdefault(name, torch.zeros_like(drawn))
            a.grad = None
        self.updates, self.learning = 0, True
        self._show(self._now())

    def edit_gradients(self, batch: Batch, model: Model) -> None:
        rows = [
            (p.grad, self.used[name])
            for name, p in model.weights().items()
            if p.grad is not None and name in self.used
        ]
        if rows:
            gradients, used = (list(column) for column in zip(*rows, strict=True))
            torch._foreach_addcmul_(gradients, gradients, used, value=-1.0)
        if self.learning:
            masks = self._masks()
            free = {name: 1 - self.units[name] for name in masks}
            # The penalty is linear in a, so its gradient is known without a backward pass.
            scale = self.sparsity / torch.cat(list(free.values())).sum().clamp(min=1)
            for name, a in masks.items():
                a.grad = scale * free[name] if a.grad is None else a.grad + scale * free[name]

    @torch.no_grad()
    def after_step(self, batch: Batch, model: Model) -> None:
        restore_weights(model, self.values, self.used)
        if not self.learning:
            return
        s = self._s()
        for name, a in self._masks().items():
            e = self.e[name]
            if a.grad is not None:
                slope = torch.sigmoid(e) * torch.sigmoid(-e) * ((s * e).abs() <= FLAT)
                e.sub_(self.rate * self.s_max * slope * a.grad).clamp_(-LIMIT, LIMIT)
                a.grad = None
        self.updates += 1
        self._show(self._now())

    def end_task(self, task: Task, batches: Sequence[Batch], model: Model) -> None:
        self.learning = False
        self._show(self._now())
        self.units = {name: torch.maximum(self.units[name], a) for name, a in self._now().items()}
        noise = generator_for(model, self.generator)
        for chunk in (chunk for batch in batches for chunk in batch.split(CHUNK)):
            # Few examples are repeated, each time with other noise.
            count = max(len(chunk), EXAMPLES)
            examples = chunk[torch.arange(count, device=model.device) % len(chunk)]
            for name, now in inputs_used(model, examples, self._layers, noise).items():
                self.inputs[name] = torch.maximum(now, self.inputs.get(name, now))
        self.used = weights_used(model, batches, self._layers, self.units, self.inputs)
        self.values = {name: w for name, w in snapshot(model).items() if name in self.used}
        self.tasks.end(task, dict(self.e), head(model))

    def _s(self) -> float:
        """Return the slope s of the next update."""
        progress = (self.updates % self.period) / (self.period - 1) if self.period > 1 else 1.0
        return 1 / self.s_max + (self.s_max - 1 / self.s_max) * progress

    def _now(self) -> dict[str, Tensor]:
        """Return the masks of the next update; between tasks the last task's binary masks."""
        return _soft(self._s(), self.e) if self.learning else _hard(self.e)

    def _masks(self) -> dict[str, Tensor]:
        """Return the masks that the layers use now, by layer."""
        return unit_masks(self._layers)

    @torch.no_grad()
    def _show(self, masks: Mapping[str, Tensor]) -> None:
        if masks and self._layers:
            for name, a in self._masks().items():
                a.copy_(masks[name])

    @contextmanager
    def view(self, task: Task, model: Model) -> Iterator[None]:
        """Apply the task's binary mask and last layer; before its end, the current mask."""
        if not self.e:
            yield
            return
        now = {name: a.detach().clone() for name, a in self._masks().items()}
        self._show(_hard(self.tasks.keys.get(task.id, self.e)))
        try:
            with self.tasks.applied(task, model):
                yield
        finally:
            self._show(now)


def _soft(s: float, e: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return sigmoid(s e), at least 1e-7. Smaller values give denormal gradients, slow on CPUs."""
    return {name: torch.sigmoid((s * x).clamp(min=-LEAST)) for name, x in e.items()}


def _hard(e: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: (x > 0).to(x.dtype) for name, x in e.items()}
