"""Strategies around every step of an optimizer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from everloop.loop.batch import Batch
from everloop.loop.model import Model
from everloop.loop.state import pack
from everloop.loop.strategies.base import Effect, Forward, Strategy
from everloop.loop.world import NotFiniteError


class Updater:
    """Runs the strategies around every step of a model's optimizer.

        zero_grad, loss, backward | edit_gradients, clip | step | after_step

    What follows the first bar runs from the optimizer's own step hooks. So it makes no difference
    who calls `optimizer.step()`: `step` below, an algorithm of Stable-Baselines3 in the depth of
    its training, or a loop of the user's own. Whoever calls must not clip before, since a penalty
    is to be clipped as if it stood in the loss.

    Somebody else's step needs two things from before it: `expect` says which batch it learns from,
    and the strategies' losses of replayed examples are computed just before `edit_gradients`.

    Args:
        model: Owner of the optimizer.
        strategies: In their order of application.
        max_grad_norm: The gradient is scaled down to this norm; None leaves it.
    """

    def __init__(
        self, model: Model, strategies: Sequence[Strategy], max_grad_norm: float | None = None
    ) -> None:
        self.model, self.strategies, self.max_grad_norm = model, strategies, max_grad_norm
        self.parts = 0  # of the batch at hand, in the gradient so far
        self._batch: Batch | None = None  # what the step to come learns from
        self._replayed = False  # True if the loss already holds the replayed examples
        self._hooks = []
        # With neither there is nothing to do, and even that would cost time.
        if strategies or max_grad_norm is not None:
            self._hooks = [
                model.optimizer.register_step_pre_hook(self._before),
                model.optimizer.register_step_post_hook(self._after),
            ]

    @property
    def parameters(self) -> list[Tensor]:
        """All that the optimizer trains, parameter groups added later included."""
        return [p for group in self.model.optimizer.param_groups for p in group["params"]]

    def detach(self) -> None:
        """Take the hooks off the optimizer."""
        while self._hooks:
            self._hooks.pop().remove()

    def state_dict(self) -> dict[str, Any]:
        """Return how many parts of a batch have come, and the gradient so far."""
        gradients = [p.grad for p in self.parameters] if self.parts else []
        return {"parts": self.parts, "gradients": pack(gradients)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.parts = state["parts"]
        for p, gradient in zip(self.parameters, pack(state["gradients"]), strict=False):
            p.grad = gradient

    def recall(self) -> list[tuple[Strategy, Batch]]:
        """Return the stored examples to replay in the next update, each batch with its strategy."""
        return [
            (s, stored) for s in self.strategies if (stored := s.recall(self.model)) is not None
        ]

    def total_loss(
        self, task_loss: Tensor, fresh: Forward, replayed: Sequence[tuple[Strategy, Forward]]
    ) -> Tensor:
        """Return the loss of one update: the task loss and what the strategies make of it."""
        of = {id(strategy): stored for strategy, stored in replayed}
        total, added = task_loss, []
        for strategy in self.strategies:
            loss = strategy.loss(fresh, of.get(id(strategy)), self.model)
            if loss is None:
                continue
            if Effect.REPLACES_LOSS in strategy.effects:
                total = loss
            else:
                added.append(loss)
        for loss in added:
            total = total + loss
        return total

    def fresh_losses(self, fresh: Forward) -> tuple[list[Tensor], bool]:
        """Return the strategies' losses of the fresh batch, for somebody else's task loss.

        Returns:
            The losses, and whether they take the place of the task loss.
        """
        losses, replaced = [], False
        for strategy in self.strategies:
            loss = strategy.loss(fresh, None, self.model)
            if loss is not None:
                losses.append(loss)
                replaced |= Effect.REPLACES_LOSS in strategy.effects
        return losses, replaced

    def expect(self, batch: Batch | None) -> None:
        """Somebody else's next steps learn from `batch`; None if from nothing that is known."""
        self._batch = batch

    def drop_parts(self) -> None:
        """Forget a batch of which only some parts have come: a new phase begins."""
        self.parts = 0

    def step(self, loss: Tensor, batch: Batch, parts: int = 1) -> float:
        """Take one step along `loss`, the total loss of `batch`.

        Args:
            loss: A scalar. One without a graph has the gradient 0, without a backward pass.
            batch: The fresh batch.
            parts: Above 1 the loss is one part of a larger batch's: the gradient is the mean over
                the parts, and every `parts`-th call takes the step.

        Returns:
            The value of the loss.

        Raises:
            NotFiniteError: If the loss is not finite. Nothing has changed then.
        """
        value = loss.item()
        if not math.isfinite(value):
            raise NotFiniteError(
                f"the loss is {value} at step {self.model.steps}; try a lower learning rate"
            )
        if self.parts == 0:
            # As optimizer.zero_grad(), without its profiler: a tenth of a small network's step.
            for p in self.parameters:
                p.grad = None
        if loss.requires_grad:
            (loss if parts == 1 else loss / parts).backward()  # type: ignore[no-untyped-call]
        elif self.parts == 0:
            for p in self.model.weights().values():
                p.grad = torch.zeros_like(p)
        self.parts = (self.parts + 1) % parts
        if self.parts == 0:
            self._batch, self._replayed = batch, True
            self._step(self.model.optimizer)
            self._batch, self._replayed = None, False
        return value

    def _step(self, optimizer: torch.optim.Optimizer) -> None:
        """Call optimizer.step(), if nobody else has hooked it without torch's record around it.

        That record is a tenth of a small network's update.
        """
        step = type(optimizer).step
        hooks = len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks)
        anyones = (
            _global_optimizer_pre_hooks or _global_optimizer_post_hooks or "step" in vars(optimizer)
        )
        if anyones or hooks > len(self._hooks) or not hasattr(step, "hooked"):
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
        """Edit the gradient; if a closure is to compute it, once that has returned."""
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
        else:  # a sum is as finite as its terms, and cheaper than a norm
            size = sum(float(p.grad.sum()) for p in self.parameters if p.grad is not None)
        if not math.isfinite(size):
            raise NotFiniteError(
                f"the gradient's norm is {size} at step {self.model.steps}; try a lower learning "
                "rate"
            )

    def _expected(self) -> Batch:
        if self._batch is None:
            raise RuntimeError(
                "the optimizer stepped without an observed batch; call begin_task, then observe "
                "before each forward pass, or detach"
            )
        return self._batch

    def _replay(self) -> None:
        """Add the gradient of the strategies' losses of replayed examples."""
        losses = []
        for strategy, stored in self.recall():
            replayed = Forward(stored, self.model.forward(stored))
            loss = strategy.loss(None, replayed, self.model)
            if loss is not None:
                losses.append(loss)
        if losses:
            torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]

    def _after(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._follow()

    def _follow(self) -> None:
        for strategy in reversed(self.strategies):
            strategy.after_step(self._expected(), self.model)
