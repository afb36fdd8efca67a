"""The only place where a gradient becomes a step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from everloop.contract import NetworkOutput
from everloop.loop.batch import Batch
from everloop.loop.model import Model
from everloop.loop.state import pack
from everloop.loop.strategies.base import Strategy
from everloop.loop.world import NotFiniteError


class Updater:
    """Runs the strategies around every step of a learner's optimizer.

        zero_grad, loss, backward | extra losses, losses of what is recalled, edit_gradients, clip |
        step | after_step

    The middle and the end run from the optimizer's own step hooks, so that it makes no difference
    who calls `optimizer.step()`: `step` below, or an algorithm of Stable-Baselines3 in the depth of
    its training. Clipping comes after the strategies (a penalty is clipped as if it stood in the
    loss), so the one who calls must not clip before.

    max_grad_norm: the gradient's norm is scaled down to it; None leaves it.
    """

    def __init__(
        self, model: Model, strategies: Sequence[Strategy], max_grad_norm: float | None = None
    ) -> None:
        self.model, self.strategies, self.max_grad_norm = model, strategies, max_grad_norm
        self.parts = 0  # of the batch at hand, in the gradient so far
        self._backward = all(strategy.wants_gradient(model) for strategy in strategies)
        self._hooks = []
        if (
            strategies or max_grad_norm is not None
        ):  # with neither there is nothing to do, and even that would cost time
            self._hooks = [
                model.optimizer.register_step_pre_hook(self._before),
                model.optimizer.register_step_post_hook(self._after),
            ]

    @property
    def parameters(self) -> list[Tensor]:
        """All that the optimizer trains, those of late groups too."""
        return [p for group in self.model.optimizer.param_groups for p in group["params"]]

    def detach(self) -> None:
        """Take the hooks off the optimizer."""
        while self._hooks:
            self._hooks.pop().remove()

    def state_dict(self) -> dict[str, Any]:
        """The parts that have come of a batch, and the gradient so far."""
        gradients = [p.grad for p in self.parameters] if self.parts else []
        return {"parts": self.parts, "gradients": pack(gradients)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.parts = state["parts"]
        for p, gradient in zip(self.parameters, pack(state["gradients"]), strict=False):
            p.grad = gradient

    def output_losses(self, batch: Batch, output: NetworkOutput) -> list[Tensor]:
        """What the strategies add to the loss of the fresh `batch`."""
        return [
            loss
            for s in self.strategies
            if (loss := s.output_loss(self.model, batch, output)) is not None
        ]

    def recall(self) -> list[tuple[Strategy, Batch]]:
        """The stored examples to replay in the next update, each batch with the strategy that it
        belongs to.
        """
        return [
            (s, stored) for s in self.strategies if (stored := s.recall(self.model)) is not None
        ]

    def drop_parts(self) -> None:
        """Forget a batch of which only some parts have come: a new phase begins."""
        self.parts = 0

    def step(self, loss: Tensor, parts: int = 1) -> float:
        """One update along `loss`; returns its value. Raises NotFiniteError before anything has
        changed.

        With `parts` above 1 the loss is one part of a larger batch's: the gradient is their mean,
        and every `parts`-th call takes the step.
        """
        value = loss.item()
        if not math.isfinite(value):
            raise NotFiniteError(
                f"the loss is {value} at step {self.model.steps}, allowed: finite numbers"
            )
        if self.parts == 0:
            # as optimizer.zero_grad() does, without its profiler, a tenth of a small network's step
            for p in self.parameters:
                p.grad = None
        if self._backward:
            (loss if parts == 1 else loss / parts).backward()  # type: ignore[no-untyped-call]
        self.parts = (self.parts + 1) % parts
        if self.parts == 0:
            self._step(self.model.optimizer)
        return value

    def _step(self, optimizer: torch.optim.Optimizer) -> None:
        """optimizer.step(), but for torch's record around it, a tenth of a small network's update,
        if nobody else has hooked it.
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
        """The gradient is there; or, if the optimizer is given a closure that computes it, it will
        be when that returns.
        """
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
        batch = self.model.minibatch
        extra = [
            loss for s in self.strategies if (loss := s.extra_loss(self.model, batch)) is not None
        ]
        if not self.model.recalls_ahead:
            recalled = self.recall()
            extra += [
                s.recall_loss(self.model, stored, self.model.forward(stored))
                for s, stored in recalled
            ]
        if extra:
            torch.stack(extra).sum().backward()  # type: ignore[no-untyped-call]
        for strategy in self.strategies:
            strategy.edit_gradients(self.model, batch)
        if self.max_grad_norm is not None:
            size = float(torch.nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm))
        else:  # a sum is as finite as its terms, and cheaper than a norm
            size = sum(float(p.grad.sum()) for p in self.parameters if p.grad is not None)
        if not math.isfinite(size):
            raise NotFiniteError(
                f"the gradient's norm is {size} at step {self.model.steps}, allowed: finite numbers"
            )

    def _after(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._follow()

    def _follow(self) -> None:
        for strategy in reversed(self.strategies):
            strategy.after_step(self.model)
