"""PackNet: prunes after each task and freezes the weights it keeps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from everloop.contract import Task
from everloop.loop.batch import Batch
from everloop.loop.model import Model
from everloop.loop.strategies.base import Effect, Strategy, Traits, check_range
from everloop.loop.strategies.parts.per_task import PerTask, substituted
from everloop.loop.strategies.parts.quadratic import restore_weights, snapshot
from everloop.loop.strategies.parts.unit_masks import weights_reached


class PackNet(Strategy):
    """Gives each task its own share of the weights by pruning, retraining and freezing.

    Mallya & Lazebnik 2018, section 3. At a task's end, in every weight matrix, the task keeps the
    `share` of the free weights with the largest |w|. The other free weights become 0 and are left
    for later tasks. The kept weights are retrained without them and then frozen. In evaluation,
    `view` sets free weights and those of later tasks to 0, so a past task sees the network that it
    ended with.

    All other weights on which the outputs depend, such as biases and norms, belong to the first
    task, as in section 3.2. If a task has its own head, it keeps the whole head. Running statistics
    of norms are stored for each task. Past tasks stay exactly the same under any optimizer: frozen
    weights get the gradient 0 and are restored after the step, since Adam's moments would move
    them.

    PackNet must come first in a list of strategies, since the others must see the pruned weights.

    Memory: three and a half copies of the weights.

    Args:
        share: Share of the free weights that each task keeps, in [0, 1]; 0 is plain training. The
            authors' scripts keep 0.5 in the first task and 0.25 in later ones.
        retrain_steps: Updates after pruning at each task's end, 0 or more. They use Adam at the
            initial learning rate, on the examples that `end_task` gets. The targets are the labels;
            in control, the policy's outputs before pruning. The authors retrain for half as many
            epochs as they train, with SGD at a tenth of the rate.
        batch_size: Number of examples in each retraining update, 1 or more.
        seed: Seed for sampling the retraining examples.
    """

    name = "packnet"
    traits: ClassVar[Traits] = Traits(
        copies=3.5, task_id=True, several_passes=True, rank={"control": 2, "other": 3}
    )
    effects = frozenset({Effect.DIVIDES_WEIGHTS})
    comes_first = True
    state = ("owner", "tasks", "ended", "values", "generator")

    def __init__(
        self, share: float = 0.5, retrain_steps: int = 200, batch_size: int = 128, seed: int = 0
    ) -> None:
        check_range("share", share, 0, 1)
        check_range("retrain_steps", retrain_steps, 0)
        check_range("batch_size", batch_size, 1)
        self.share = share
        self.retrain_steps, self.batch_size = retrain_steps, batch_size
        self.generator = torch.Generator().manual_seed(seed)
        self.owner: dict[str, Tensor] = {}  # int16: k if the k-th task owns the weight, 0 if free
        self.ended = 0  # number of times that a task has ended; k of the latest
        self.tasks = PerTask()  # keys: k of the task; tensors: its statistics of norms
        self.values: dict[str, Tensor] = {}  # weights at the last task's end
        self._mask()

    @property
    def active(self) -> bool:
        return self.share > 0

    def check(self, model: Model) -> None:
        if not model.task_aware:
            raise ValueError(
                "packnet needs the task ID to choose weights; use scenario_type task, or a world "
                "with task_cue=True"
            )

    def begin_task(self, task: Task, model: Model) -> None:
        self.tasks.begin(task, model)  # a task that returns will get one more share

    def edit_gradients(self, batch: Batch, model: Model) -> None:
        rows = [
            (p.grad, self._free[name])
            for name, p in model.weights().items()
            if p.grad is not None and name in self.owner
        ]
        if rows:
            torch._foreach_mul_([g for g, _ in rows], [free for _, free in rows])

    def after_step(self, batch: Batch, model: Model) -> None:
        restore_weights(model, self.values, self._owned)

    def end_task(self, task: Task, batches: Sequence[Batch], model: Model) -> None:
        self.ended += 1
        # In control the targets are the policy's outputs, so they are computed before pruning.
        examples = [replace(batch, target=model.targets(batch)) for batch in batches]
        self._claim(task, model, examples)
        self._retrain(model, examples)
        self.tasks.end(task, self.ended, dict(model.module.named_buffers()))
        self._freeze(model)

    @torch.no_grad()
    def _claim(self, task: Task, model: Model, batches: Sequence[Batch]) -> None:
        """Give the task its share of every weight matrix, and set the other free weights to 0."""
        with model.evaluating():
            used, heads = _weights_used(model, batches), _head_rows(task, model, batches[0])
        for name, p in model.weights().items():
            if name not in used:
                continue
            owner = self.owner.setdefault(name, torch.zeros_like(p, dtype=torch.int16))
            free = owner == 0
            if name in heads:
                mine = torch.zeros_like(free)
                mine[heads[name]] = True
                owner[mine] = self.ended
            elif p.ndim < 2:
                owner[free] = 1
            else:
                size = p.abs().masked_fill(~free, -1.0).flatten()
                order = size.argsort(descending=True, stable=True)
                mine = torch.zeros(p.numel(), dtype=torch.bool, device=p.device)
                mine[order[: round(self.share * int(free.sum()))]] = True
                owner[mine.view(p.shape)] = self.ended
                p[owner == 0] = 0.0

    def _retrain(self, model: Model, batches: Sequence[Batch]) -> None:
        """Retrain the weights that the task owns, without the pruned ones."""
        own = {
            name: (self.owner[name] == self.ended).to(p.dtype)
            for name, p in model.weights().items()
            if name in self.owner
        }
        live = {name: p for name, p in model.weights().items() if name in own}
        # The initial learning rate, since a schedule may have lowered the current one to 0.
        rate = float(model.optimizer.defaults["lr"])
        optimizer = torch.optim.Adam(live.values(), lr=rate, fused=True)
        before = {name: p.detach().clone() for name, p in live.items()}
        for _ in range(self.retrain_steps):
            batch = batches[int(torch.randint(len(batches), (), generator=self.generator))]
            count = min(self.batch_size, len(batch))
            rows = torch.randint(len(batch), (count,), generator=self.generator)
            loss = model.loss(batch[rows.to(model.device)])
            gradients = torch.autograd.grad(loss, list(live.values()), allow_unused=True)
            for (name, p), g in zip(live.items(), gradients, strict=True):
                p.grad = None if g is None else g * own[name]
            optimizer.step()
            model.tally.updates += 1
            model.tally.presentations += count
            with torch.no_grad():
                for name, p in live.items():
                    p.copy_(torch.lerp(before[name], p, own[name]))
        for p in live.values():
            p.grad = None

    def _restored(self, model: Model) -> None:
        self._mask()

    def _freeze(self, model: Model) -> None:
        self.values = {name: w for name, w in snapshot(model).items() if name in self.owner}
        self._mask()

    def _mask(self) -> None:
        """Compute the masks of owned and of free weights, which every step uses."""
        self._owned = {
            name: (owner > 0).to(self.values[name].dtype) for name, owner in self.owner.items()
        }
        self._free = {name: 1 - owned for name, owned in self._owned.items()}

    @contextmanager
    def view(self, task: Task, model: Model) -> Iterator[None]:
        """Set free weights and weights of later tasks to 0, for a task that has ended."""
        if task not in self.tasks:
            yield
            return
        rank, weights = self.tasks.keys[task.id], snapshot(model)
        shares = {
            name: weights[name].masked_fill((owner == 0) | (owner > rank), 0.0)
            for name, owner in self.owner.items()
            if name in weights
        }
        with substituted(model.module, shares), self.tasks.applied(task, model):
            yield


def _weights_used(model: Model, batches: Sequence[Batch]) -> set[str]:
    """Return the names of the weights that affect the outputs; a value head's do not."""
    used = set(weights_reached(model, batches))
    return {name for name, p in model.weights().items() if p in used}


@torch.no_grad()
def _head_rows(task: Task, model: Model, batch: Batch) -> dict[str, slice]:
    """Return the task's rows of the last layer by weight name; empty without heads per task."""
    heads = model.forward(batch[:1]).heads  # (T, B, tasks, P)
    if heads is None:
        return {}
    layer = model.last_layer()
    size = layer.out_features // heads.shape[2]  # P covers all tokens of a text
    names = {id(p): name for name, p in model.weights().items()}
    return {
        names[id(p)]: slice(task.id * size, (task.id + 1) * size)
        for p in layer.parameters()
        if id(p) in names
    }
