"""The strategies' losses of fresh batches, joined to the loss of a user's own loop."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from everloop.loop.batch import Batch
from everloop.loop.learners.calls import has_rows, tensors_in
from everloop.loop.strategies.base import Effect, Forward, Strategy
from everloop.loop.strategies.parts.rehearsal import Rehearsal


class Joining:
    """Adds the gradients of the strategies' losses in the loop's own backward pass.

    The first forward pass on an observed batch counts; further ones in the same step do not. Where
    the loop's loss does not depend on a forward pass of the module, because its parts are called
    one by one, the losses get a forward pass of their own inside the step.

    Args:
        model: The attached loop.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.missing: list[Batch] = []  # observed, but their losses are not in the gradient yet
        self._latest: Batch | None = None
        self._pending: Batch | None = None  # the batch of a forward pass without a backward pass
        self.steps = 0  # optimizer steps seen in the current task
        self._stepped = False  # True after a step, until the next batch is observed
        self._unlabelled = False  # True if the module was called without the labels to observe
        self._hooks: list[Any] = []

    def watch(self) -> None:
        """Hook every forward pass of the module."""
        module: nn.Module = self.model.module
        self._hooks = [
            module.register_forward_pre_hook(self._before_forward, with_kwargs=True),
            module.register_forward_hook(self._after_forward),
        ]

    def unwatch(self) -> None:
        """Take the hooks off the module."""
        for hook in self._hooks:
            hook.remove()

    def expect(self, batch: Batch | None) -> None:
        """Set the batch of the next forward pass; None if it is unknown."""
        if self._stepped or batch is None:
            self.missing, self._stepped = [], False
        if batch is not None:
            self.missing = [*self.missing, batch][-self.model.accumulate :]
        self._latest, self._pending, self._unlabelled = batch, None, False

    def late(self) -> list[Forward]:
        """Return forward passes of the batches whose losses are not in the gradient.

        Called once in each step, after the loop's backward passes.

        Raises:
            RuntimeError: If a strategy replaces the loop's loss, which is too late now, or if the
                module was called without the labels.
        """
        self.steps += 1
        if self._unlabelled:
            raise RuntimeError(
                f"the module was called without {self.model.label_name!r}, so its batch was not "
                "observed; call observe before each forward pass"
            )
        missing, needing = self.missing, [s for s in self.model.strategies if uses_fresh(s)]
        # The next step may learn from the latest batch again.
        self.missing = [] if self._latest is None else [self._latest]
        self._stepped, self._pending = True, None
        if not missing or not needing:
            return []
        for strategy in needing:
            if Effect.REPLACES_LOSS in strategy.effects:
                raise RuntimeError(
                    f"{strategy.name} replaces the loop's loss, but this loss does not depend on a "
                    "forward pass of the module on the observed batch; call the module itself, and "
                    "pass outputs= if it does not return logits"
                )
        return [Forward(batch, self.model.fresh_forward(batch)) for batch in missing]

    def _before_forward(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Observe the batch if the module receives the labels."""
        model = self.model
        labels = None if model.label_name is None else kwargs.get(model.label_name)
        training = module.training and torch.is_grad_enabled() and not model.calls.active
        if model.label_name is None or not training:
            return
        if labels is None:
            # The loop may have called `observe` itself, because it keeps the labels.
            self._unlabelled = self._stepped
            return
        inputs = {
            name: x
            for name, x in kwargs.items()
            if name != model.label_name and has_rows(x, len(labels))
        }
        model.observe(inputs, labels)

    def _after_forward(self, module: nn.Module, args: Any, output: Any) -> None:
        model = self.model
        if model.calls.active or not self.missing or not torch.is_grad_enabled():
            return
        batch = self.missing[-1]
        raw = [x for x in tensors_in(output) if x.requires_grad]
        if batch is self._pending or not raw:
            return
        try:
            logits = model.calls.pick(output)
        except ValueError:
            if model.calls.predict is None:
                raise
            return  # only the user's `predict` knows the logits
        if not has_rows(logits, len(batch)) or not logits.requires_grad:
            return
        leaf = logits.detach().requires_grad_()
        found = model.updater.fresh_gradients(Forward(batch, model.output_of(batch, leaf)), [leaf])
        self._pending = batch
        if found is None:
            self._found(batch)
            return
        gradient = torch.zeros_like(leaf) if found.outputs[0] is None else found.outputs[0]
        # The loop scales its own loss by the same factor.
        scale = (1.0 if model.scaler is None else model.scaler.get_scale()) / model.accumulate
        weights = [(w, scale * g) for w, g in found.weights]
        if any(x is logits for x in raw):
            raw, gradients = [logits], [gradient]
        else:
            gradients = list(
                torch.autograd.grad(logits, raw, gradient, retain_graph=True, allow_unused=True)
            )
        for x, g in zip(raw, gradients, strict=True):
            if g is not None:
                hook = self._joined(batch, weights, scale * g, found.replace)
                x.register_hook(hook)  # type: ignore[no-untyped-call]

    def _found(self, batch: Batch) -> None:
        self.missing = [part for part in self.missing if part is not batch]

    def _joined(
        self, batch: Batch, weights: list[tuple[Tensor, Tensor]], added: Tensor, replace: bool
    ) -> Any:
        """Return a hook that adds a gradient once, and those of weights with the first one."""
        fired = False

        def joined(own: Tensor) -> Tensor:
            nonlocal fired
            if fired:
                return torch.zeros_like(own) if replace else own
            fired = True
            if any(part is batch for part in self.missing):
                self._found(batch)
                for w, g in weights:
                    w.grad = g if w.grad is None else w.grad + g
            return added.to(own.dtype) if replace else own + added.to(own.dtype)

        return joined


def uses_fresh(strategy: Strategy) -> bool:
    """Return True if the strategy may have a loss of the fresh batch."""
    return type(strategy).loss not in (Strategy.loss, Rehearsal.loss)
