"""Run strategies around every step of an optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from everloop.loop.batch import Batch
from everloop.loop.model import Model
from everloop.loop.state import pack
from everloop.loop.strategies.base import Effect, Forward, Strategy
from everloop.loop.world import Diverged


def too_high(name: str, value: float, model: Model) -> str:
    """Return the message about a loss above the model's `max_loss`."""
    return (
        f"the {name} is {value:g} at step {model.steps}, above max_loss {model.max_loss:g}; try a "
        "lower learning rate, or raise max_loss"
    )


class FreshGradients(NamedTuple):
    """Gradients of the strategies' losses of a fresh batch.

    Attributes:
        outputs: For each of the network's outputs its gradient, or None if no loss depends on it.
        weights: Pairs of a weight and its gradient, for losses that depend on weights directly.
        replace: True if they replace the gradient of the task loss.
    """

    outputs: list[Tensor | None]
    weights: list[tuple[Tensor, Tensor]]
    replace: bool


class Updater:
    """Runs the strategies around every step of a model's optimizer.

        zero_grad, loss, backward | edit_gradients, clip | step | after_step

    Everything after the first bar runs from the optimizer's step hooks. So `optimizer.step()` may
    be called from anywhere: from `step` below, from inside an algorithm of Stable-Baselines3, or
    from a user's own loop. The caller must not clip the gradient before the step. Clipping comes
    after the strategies, so that a penalty is clipped as if it were part of the loss.

    When other code calls `optimizer.step()`, two things differ. `expect` must say before the step
    which batch it learns from. And the losses of replayed examples are computed just before
    `edit_gradients`.

    Args:
        model: The model whose optimizer is hooked.
        strategies: Strategies in their order of application.
        max_grad_norm: Norm to which the gradient is clipped, above 0; None for no clipping.
        late: Function that returns, in a step that other code calls, the forward passes of fresh
            batches whose losses are not in the gradient yet; None if there are never any.
    """

    def __init__(
        self,
        model: Model,
        strategies: Sequence[Strategy],
        max_grad_norm: float | None = None,
        late: Callable[[], Sequence[Forward]] | None = None,
    ) -> None:
        self.model, self.strategies, self.late = model, strategies, late
        self.max_grad_norm = max_grad_norm
        self.parts = 0  # parts of a batch that the gradient holds so far
        self._batch: Batch | None = None  # the batch of the next step
        self._replayed = False  # True if the loss already holds the replayed examples
        self._hooks = []
        # Without strategies and clipping the hooks would do nothing, but cost time.
        if strategies or max_grad_norm is not None:
            self._hooks = [
                model.optimizer.register_step_pre_hook(self._before),
                model.optimizer.register_step_post_hook(self._after),
            ]

    @property
    def parameters(self) -> list[Tensor]:
        """Every weight that the optimizer trains now."""
        return [p for group in self.model.optimizer.param_groups for p in group["params"]]

    def detach(self) -> None:
        """Remove the hooks from the optimizer."""
        while self._hooks:
            self._hooks.pop().remove()

    def state_dict(self) -> dict[str, Any]:
        """Return the number of parts in an unfinished gradient, and that gradient."""
        gradients = [p.grad for p in self.parameters] if self.parts else []
        return {"parts": self.parts, "gradients": pack(gradients)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.parts = state["parts"]
        if self.parts:
            for p, gradient in zip(self.parameters, pack(state["gradients"]), strict=True):
                p.grad = gradient

    def recall(self) -> list[tuple[Strategy, Batch]]:
        """Return the stored examples to replay in the next update, each batch with its strategy."""
        recalled = [
            (s, stored) for s in self.strategies if (stored := s.recall(self.model)) is not None
        ]
        self.model.tally.presentations += sum(len(stored) for _, stored in recalled)
        return recalled

    def total_loss(
        self, task_loss: Tensor, fresh: Forward, replayed: Sequence[tuple[Strategy, Forward]]
    ) -> Tensor:
        """Return the loss of one update: the task loss with the strategies' losses."""
        instead, added = self._losses(fresh, replayed)
        total = task_loss if instead is None else instead
        for loss in added:
            total = total + loss
        return total

    def fresh_gradients(self, fresh: Forward, leaves: Sequence[Tensor]) -> FreshGradients | None:
        """Return the gradients of the strategies' losses where other code has the task loss.

        Args:
            fresh: The fresh batch, with an output made of `leaves`.
            leaves: The network's outputs, detached and with requires_grad.

        Returns:
            The gradients, or None if no strategy has a loss.
        """
        instead, added = self._losses(fresh, [])
        losses = added if instead is None else [instead, *added]
        if not losses:
            return None
        outputs: list[Tensor | None] = [None] * len(leaves)
        weights: list[tuple[Tensor, Tensor]] = []
        total = torch.stack(losses).sum()
        if total.requires_grad:
            known = [p for p in self.parameters if p.requires_grad]
            found = torch.autograd.grad(total, [*leaves, *known], allow_unused=True)
            outputs = list(found[: len(leaves)])
            pairs = zip(known, found[len(leaves) :], strict=True)
            weights = [(w, g) for w, g in pairs if g is not None]
        return FreshGradients(outputs, weights, instead is not None)

    def _losses(
        self, fresh: Forward, replayed: Sequence[tuple[Strategy, Forward]]
    ) -> tuple[Tensor | None, list[Tensor]]:
        """Return the loss that replaces the task loss, if there is one, and the added losses."""
        replayed_by = {id(strategy): stored for strategy, stored in replayed}
        instead, added = None, []
        for strategy in self.strategies:
            loss = strategy.loss(fresh, replayed_by.get(id(strategy)), self.model)
            if Effect.REPLACES_LOSS in strategy.effects:
                instead = loss
            elif loss is not None:
                added.append(loss)
        return instead, added

    def expect(self, batch: Batch | None) -> None:
        """Set the batch of the next steps that other code calls; None if it is unknown."""
        self._batch = batch

    def drop_parts(self) -> None:
        """Discard an unfinished gradient, because a new phase begins."""
        self.parts = 0

    def step(self, loss: Tensor, batch: Batch, parts: int = 1) -> float:
        """Take one optimizer step on `loss`.

        Args:
            loss: The total loss of `batch`, a scalar. If it has no graph, its gradient is 0.
            batch: The fresh batch.
            parts: Number of calls that share one step, 1 or more. The gradient is the mean over
                these calls, and the last one takes the step.

        Returns:
            The value of the loss.

        Raises:
            Diverged: If the loss or the gradient is not finite, or the loss is above the model's
                `max_loss`. No weight has changed then.
        """
        value = loss.item()
        if not math.isfinite(value):
            raise Diverged(
                f"the loss is {value} at step {self.model.steps}; try a lower learning rate"
            )
        if value > self.model.max_loss:
            raise Diverged(too_high("loss", value, self.model))
        if self.parts == 0:
            # optimizer.zero_grad() does the same, but its profiler record takes a tenth of a small
            # network's step.
            for p in self.parameters:
                p.grad = None
        if loss.requires_grad:
            (loss if parts == 1 else loss / parts).backward()  # type: ignore[no-untyped-call]
        elif self.parts == 0:
            for p in self.model.weights().values():
                p.grad = torch.zeros_like(p)
        self.model.tally.presentations += len(batch)
        self.parts = (self.parts + 1) % parts
        if self.parts == 0:
            self._batch, self._replayed = batch, True
            self._step(self.model.optimizer)
            self._batch, self._replayed = None, False
            self.model.tally.updates += 1
        return value

    def _step(self, optimizer: torch.optim.Optimizer) -> None:
        """Call `optimizer.step()`, without torch's profiler record where no other hook needs it.

        That record takes a tenth of a small network's update.
        """
        step = type(optimizer).step
        hooks = len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks)
        global_hooks = _global_optimizer_pre_hooks or _global_optimizer_post_hooks
        wrapped = "step" in vars(optimizer) or not hasattr(step, "hooked")
        if global_hooks or wrapped or hooks > len(self._hooks):
            optimizer.step()
            return
        if self._hooks:
            self._edit()
        step.__wrapped__(optimizer)  # type: ignore[attr-defined]
        if self._hooks:
            self._follow()

    def _before(
        self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any
    ) -> tuple[Any, Any] | None:
        """Edit the gradient now, or after the closure that computes it."""
        if getattr(optimizer, "grad_scale", None) is not None:
            raise ValueError(
                "the optimizer is fused and its gradients are scaled; with a GradScaler use "
                "fused=False"
            )
        closure = args[1] if len(args) > 1 else kwargs.get("closure")  # args[0] is the optimizer
        if closure is None:
            self._edit()
            return None

        def edited() -> Any:
            with torch.enable_grad():
                loss = closure()
            self._edit()
            return loss

        return (args[0], edited), {}

    @torch.enable_grad()
    def _edit(self) -> None:
        if self.strategies:
            batch = self._expected()
            if not self._replayed:
                self._replay()
            for strategy in self.strategies:
                strategy.edit_gradients(batch, self.model)
        if self.max_grad_norm is not None:
            size = float(torch.nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm))
        else:  # a sum shows nan and infinity too, and is cheaper than a norm
            size = sum(float(p.grad.sum()) for p in self.parameters if p.grad is not None)
        if not math.isfinite(size):
            raise Diverged(
                f"the gradient's norm is {size} at step {self.model.steps}; try a lower learning "
                "rate"
            )

    def _expected(self) -> Batch:
        if self._batch is None:
            raise RuntimeError(
                "the optimizer stepped without an observed batch; call begin_task, then observe "
                "before each forward pass (label_name observes only calls with labels), or detach"
            )
        return self._batch

    def _replay(self) -> None:
        """Add the gradients of the losses on replayed examples and on late ones to `.grad`."""
        losses: list[Tensor] = []
        for fresh in () if self.late is None else self.late():
            losses += [loss / self.model.accumulate for loss in self._losses(fresh, [])[1]]
        for strategy, stored in self.recall():
            replayed = Forward(stored, self.model.forward(stored))
            loss = strategy.loss(None, replayed, self.model)
            if loss is not None:
                losses.append(loss)
        losses = [loss for loss in losses if loss.requires_grad]
        if losses:
            torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]

    def _after(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if not self._replayed:  # other code took the step, so nothing is counted yet
            self.model.tally.updates += 1
            self.model.tally.presentations += 0 if self._batch is None else len(self._batch)
        self._follow()

    def _follow(self) -> None:
        for strategy in reversed(self.strategies):
            strategy.after_step(self._expected(), self.model)
