"""Strategies in your own training loop, around any torch optimizer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everloop.contract import NetworkOutput, Output, Task
from everloop.loop.batch import Batch
from everloop.loop.learners.accompanied import Accompanied
from everloop.loop.likelihood import Categorical
from everloop.loop.strategies.base import Forward, Strategy, load_states, states_of

Inputs = Tensor | Mapping[str, Tensor]
Examples = tuple[Inputs, Tensor]
ALONE = "input"
"""The name of inputs that are a single tensor."""


def attach(
    strategies: Sequence[Strategy],
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    classes: int | None = None,
    predict: Callable[[nn.Module, Any], Tensor] | None = None,
    label_name: str | None = None,
    max_grad_norm: float | None = None,
    accumulate: int = 1,
    scaler: torch.amp.GradScaler | None = None,
) -> Attached:
    """Run `strategies` around every step of `optimizer`, whoever calls it, until `.detach()`.

    The loop stays as it is. It says when a task begins and ends, and what is learned from:

        loop = attach([EWC(100.0)], module, optimizer)
        loop.begin_task(0)
        ... for each batch, before the forward pass: loop.observe(x, y)
        loop.end_task([(x, y), ...])
        with loop.view(0): ... evaluate ...

    A strategy that replaces the task loss (ER-ACE, iCaRL, La-MAML, GDumb) replaces the gradient
    that the loop's own loss sends back to the logits.

    Args:
        strategies: In their order of application. Inactive ones are left out.
        module: A classifier. Called with the inputs, a tensor (B, ...) or keyword arguments, it
            returns logits (B, classes), or an object with `logits`.
        optimizer: The optimizer of the module's weights.
        classes: Number of classes; by default the size of the last linear layer.
        predict: (module, inputs) -> logits (B, classes), for a module that is called otherwise.
        label_name: Keyword argument by which the module itself gets its labels, as in Hugging
            Face's models. Batches are then observed without a call of `observe`.
        max_grad_norm: Clips the gradient after the strategies. Switch off the loop's own clipping,
            which would come before them.
        accumulate: Number of batches whose gradients the loop adds up to one step, each loss
            divided by this number.
        scaler: The loop's GradScaler, if it has one. The optimizer must not be fused then.

    Raises:
        ValueError: If a strategy cannot work here. Nothing has changed then.
    """
    return Attached(
        strategies,
        module,
        optimizer,
        classes,
        predict,
        label_name,
        max_grad_norm,
        accumulate,
        scaler,
    )


class Attached(Accompanied):
    """What `attach` returns: strategies around a training loop that is not ours.

    One row of the inputs is one example.
    """

    labelled = True

    def __init__(
        self,
        strategies: Sequence[Strategy],
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        classes: int | None,
        predict: Callable[[nn.Module, Any], Tensor] | None,
        label_name: str | None,
        max_grad_norm: float | None,
        accumulate: int,
        scaler: torch.amp.GradScaler | None,
    ) -> None:
        if accumulate < 1:
            raise ValueError(f"accumulate is {accumulate}; it must be 1 or more")
        self.accumulate, self.scaler = accumulate, scaler
        self.module, self.optimizer, self.max_grad_norm = module, optimizer, max_grad_norm
        self.predict, self.label_name = predict or _call, label_name
        self.likelihood = Categorical(
            self.last_layer().out_features if classes is None else classes
        )
        self.current: Task | None = None
        self._observed: Batch | None = None  # what the forward pass to come is of
        self._asking = False  # True in a forward pass of a strategy, not of the loop
        self.attach(strategies)
        self._watch()

    def _watch(self) -> None:
        """Hook every forward pass of the module."""
        self._hooks = [
            self.module.register_forward_pre_hook(self._before_forward, with_kwargs=True),
            self.module.register_forward_hook(self._after_forward),
        ]

    def detach(self) -> None:
        """Take all hooks off the module and the optimizer."""
        self.updater.detach()
        for hook in self._hooks:
            hook.remove()

    def move_to(self, optimizer: torch.optim.Optimizer) -> None:
        """Follow another optimizer of the same module, in place of the present one."""
        self.optimizer = optimizer
        self.attach(self.strategies)
        self.updater.expect(self._observed)

    def begin_task(self, task: int, name: str | None = None) -> None:
        """Begin a task.

        Args:
            task: The task's ID.
            name: The task's name; by default "task-<ID>".
        """
        self.current = Task(task, name or f"task-{task}")
        for strategy in self.strategies:
            strategy.begin_task(self.current, self)

    def observe(self, inputs: Inputs, labels: Tensor) -> None:
        """Say what the next forward pass is of, and what the next steps learn from.

        Args:
            inputs: A tensor (B, ...), or tensors by keyword argument.
            labels: int64 (B,).

        Raises:
            RuntimeError: Outside of a task.
        """
        if self.current is None:
            raise RuntimeError("a batch was observed outside of a task; call begin_task first")
        batch = self.batch(inputs, labels)
        self._expect(batch)
        self.steps += len(batch)
        for strategy in self.strategies:
            strategy.observe(batch, self)

    def _expect(self, batch: Batch | None) -> None:
        self._observed = batch
        self.updater.expect(batch)

    def end_task(self, examples: Iterable[Examples]) -> None:
        """End the task.

        Args:
            examples: Batches of the task, inputs and labels, on which strategies consolidate.

        Raises:
            RuntimeError: Outside of a task.
            ValueError: Without examples.
        """
        if self.current is None:
            raise RuntimeError("end_task was called before begin_task")
        batches = [self.batch(inputs, labels) for inputs, labels in examples]
        if not batches:
            raise ValueError("end_task got no examples; give one batch or more")
        for strategy in self.strategies:
            strategy.end_task(self.current, batches, self)
        self._expect(None)
        self.current = None

    @contextmanager
    def view(self, task: int) -> Iterator[None]:
        """Show the network as it should be for evaluating `task`, in evaluation mode."""
        with ExitStack() as views:
            for strategy in self.strategies:
                views.enter_context(strategy.view(Task(task, f"task-{task}"), self))
            views.enter_context(self.evaluating())
            yield

    def weights(self) -> dict[str, nn.Parameter]:
        """Return the parameters that the optimizer trains, by name."""
        trained = {p for group in self.optimizer.param_groups for p in group["params"]}
        return {name: p for name, p in super().weights().items() if p in trained}

    def batch(self, inputs: Inputs, labels: Tensor) -> Batch:
        """Return inputs (B, ...) and labels (B,) as a batch of single steps."""
        obs = inputs if isinstance(inputs, Mapping) else {ALONE: inputs}
        rows = len(labels)
        here = {name: x.detach().to(self.device)[None] for name, x in obs.items()}
        start = torch.ones(1, rows, dtype=torch.bool, device=self.device)
        task = torch.full((rows,), self.current.id if self.current else -1, device=self.device)
        return Batch(here, start, target=labels.detach().to(self.device)[None], task=task)

    def apply(
        self, module: nn.Module, obs: Mapping[str, Tensor], state: Tensor, start: Tensor
    ) -> tuple[NetworkOutput, Tensor]:
        rows = {name: x.flatten(0, 1) for name, x in obs.items()}
        self._asking = True
        try:
            logits = self.predict(module, rows[ALONE] if set(rows) == {ALONE} else rows)
        finally:
            self._asking = False
        return Output(logits.float().unflatten(0, tuple(start.shape))), state  # type: ignore[no-untyped-call]

    def initial_state(self, batch: int) -> Tensor:
        return torch.zeros(batch, 0, device=self.device)

    def loss_of(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the mean cross-entropy."""
        return F.cross_entropy(outputs.flatten(0, 1), target.flatten())

    def example_losses(self, outputs: Tensor, target: Tensor) -> Tensor:
        return -self.likelihood.log_prob(outputs, target).sum(0)

    def targets(self, batch: Batch) -> Tensor:
        """Return the labels."""
        assert batch.target is not None, "a batch of a stream has labels"
        return batch.target

    def observed(self, batch: Batch) -> Tensor | None:
        return batch.target

    def frozen_copy(self) -> nn.Module:
        for hook in self._hooks:
            hook.remove()  # a copied hook would hold a copy of this object, and call it
        frozen = copy.deepcopy(self.module).eval().requires_grad_(False)
        self._watch()
        return frozen

    def state_dict(self) -> dict[str, Any]:
        """Return the state of all strategies and the current task.

        Saving the module and the optimizer is left to the loop.
        """
        task = None if self.current is None else (self.current.id, self.current.name)
        return {"steps": self.steps, "task": task, "strategies": states_of(self.strategies)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Load the module's and the optimizer's states after this: they may hold weights that
        strategies add again here.

        Raises:
            ValueError: For the state of other strategies.
        """
        load_states(self.strategies, state["strategies"], self)
        self.steps = state["steps"]
        self.current = None if state["task"] is None else Task(*state["task"])

    def _before_forward(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Observe the batch, if the module is given the labels itself."""
        labels = None if self.label_name is None else kwargs.get(self.label_name)
        training = module.training and torch.is_grad_enabled() and not self._asking
        if labels is None or not training:
            return
        inputs = {
            name: x
            for name, x in kwargs.items()
            if name != self.label_name and _has_rows(x, len(labels))
        }
        self.observe(inputs, labels)

    def _after_forward(self, module: nn.Module, args: Any, output: Any) -> None:
        """Let the strategies' losses join where the loop's own gradient reaches the logits."""
        batch, logits = self._observed, _logits(output)
        if self._asking or batch is None or not torch.is_grad_enabled():
            return
        if not _has_rows(logits, len(batch)) or not logits.requires_grad:
            return
        leaf = logits.detach().float()[None].requires_grad_()
        losses, replaced = self.updater.fresh_losses(Forward(batch, Output(leaf)))
        if not losses:
            return
        total = torch.stack(losses).sum()
        (gradient,) = torch.autograd.grad(total, leaf) if total.requires_grad else (0 * leaf,)
        # As the loop scales its own loss.
        scale = (1.0 if self.scaler is None else self.scaler.get_scale()) / self.accumulate

        def joined(own: Tensor) -> Tensor:
            added: Tensor = scale * gradient[0].to(own.dtype)
            return added if replaced else own + added

        logits.register_hook(joined)


def _call(module: nn.Module, inputs: Inputs) -> Tensor:
    logits: Tensor = _logits(module(**inputs) if isinstance(inputs, Mapping) else module(inputs))
    return logits


def _logits(output: Any) -> Any:
    return getattr(output, "logits", output)


def _has_rows(x: Any, rows: int) -> bool:
    """True for a tensor with a row for each example."""
    return isinstance(x, Tensor) and x.ndim > 0 and len(x) == rows
