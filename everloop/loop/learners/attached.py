"""Strategies in a user's own training loop, around any torch optimizer."""

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
"""Modality name of inputs that are a single tensor."""


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
    """Run `strategies` around every step of `optimizer`, until `.detach()` is called.

    The training loop keeps its own loss and steps. It adds calls that say when a task begins and
    ends, and which batch comes next:

        loop = attach([EWC(100.0)], module, optimizer)
        loop.begin_task(0)
        ... for each batch, before the forward pass: loop.observe(x, y)
        loop.end_task([(x, y), ...])
        with loop.view(0): ... evaluate ...

    Some strategies replace the task loss: ER-ACE, iCaRL, La-MAML and GDumb. They replace the
    gradient of the loop's own loss at the logits.

    Args:
        strategies: Strategies in their order of application. Inactive ones are left out.
        module: A classifier. It takes a tensor (B, ...) or keyword arguments, and returns logits
            (B, classes) or an object with the attribute `logits`.
        optimizer: The optimizer of the module's weights.
        classes: Number of classes, 1 or more; by default the size of the last linear layer.
        predict: Function (module, inputs) -> logits (B, classes), for a module that is called in
            another way.
        label_name: Keyword argument through which the module receives labels, as in Hugging Face's
            models. Then the loop need not call `observe`.
        max_grad_norm: Norm to which the gradient is clipped after the strategies, above 0; None for
            no clipping. Switch off the loop's own clipping, which would come before them.
        accumulate: Number of batches, 1 or more, whose gradients the loop adds up for one step. The
            loop divides each loss by this number.
        scaler: The loop's GradScaler, if it has one. The optimizer must then have fused=False.

    Raises:
        ValueError: If a strategy does not work with this model. Nothing has changed then.
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
    """Strategies in a user's own training loop; `attach` returns it.

    Each row of the inputs is one example.
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
        self.module, self.optimizer = module, optimizer
        self.max_grad_norm = max_grad_norm
        self.predict, self.label_name = predict or _call, label_name
        self.likelihood = Categorical(
            self.last_layer().out_features if classes is None else classes
        )
        self.current: Task | None = None
        self._observed: Batch | None = None  # the batch of the next forward pass
        self._asking = False  # True during a forward pass that is not the loop's own
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
        """Run the strategies around another optimizer of the same module."""
        self.optimizer = optimizer
        self.attach(self.strategies)
        self.updater.expect(self._observed)

    def begin_task(self, task: int, name: str | None = None) -> None:
        """Begin a task.

        Args:
            task: The task's ID, 0 or more.
            name: The task's name; by default "task-<ID>".
        """
        self.current = Task(task, name or f"task-{task}")
        for strategy in self.strategies:
            strategy.begin_task(self.current, self)

    def observe(self, inputs: Inputs, labels: Tensor) -> None:
        """Announce the batch of the next forward pass and optimizer steps.

        Args:
            inputs: A tensor (B, ...), or tensors by keyword argument.
            labels: Labels, int64 (B,).

        Raises:
            RuntimeError: If no task has begun.
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
            examples: Batches (inputs, labels) of the task. Strategies use them to protect it, for
                example to estimate which weights matter.

        Raises:
            RuntimeError: If no task has begun.
            ValueError: If there are no examples.
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
        """Prepare the network for evaluating `task`, and put it in evaluation mode."""
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
        on_device = {name: x.detach().to(self.device)[None] for name, x in obs.items()}
        start = torch.ones(1, rows, dtype=torch.bool, device=self.device)
        task = torch.full((rows,), self.current.id if self.current else -1, device=self.device)
        return Batch(on_device, start, target=labels.detach().to(self.device)[None], task=task)

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
            hook.remove()  # a copied module's hooks would call a copy of this object
        frozen = copy.deepcopy(self.module).eval().requires_grad_(False)
        self._watch()
        return frozen

    def state_dict(self) -> dict[str, Any]:
        """Return the state of all strategies and the current task.

        The loop must save the module and the optimizer itself.
        """
        task = None if self.current is None else (self.current.id, self.current.name)
        return {"steps": self.steps, "task": task, "strategies": states_of(self.strategies)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Load the module's and the optimizer's states after this. They may contain weights that
        strategies add to the network here.

        Raises:
            ValueError: If the state belongs to other strategies.
        """
        load_states(self.strategies, state["strategies"], self)
        self.steps = state["steps"]
        self.current = None if state["task"] is None else Task(*state["task"])

    def _before_forward(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Observe the batch if the module receives the labels."""
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
        """Add the gradient of the strategies' losses to the loop's own gradient at the logits."""
        batch, logits = self._observed, _logits(output)
        if self._asking or batch is None or not torch.is_grad_enabled():
            return
        if not _has_rows(logits, len(batch)) or not logits.requires_grad:
            return
        leaf = logits.detach().float()[None].requires_grad_()
        found = self.updater.fresh_gradients(Forward(batch, Output(leaf)), [leaf])
        if found is None:
            return
        gradient = torch.zeros_like(leaf) if found.outputs[0] is None else found.outputs[0]
        # The loop scales its own loss by the same factor.
        scale = (1.0 if self.scaler is None else self.scaler.get_scale()) / self.accumulate

        def joined(own: Tensor) -> Tensor:
            for w, g in found.weights:
                w.grad = scale * g if w.grad is None else w.grad + scale * g
            added: Tensor = scale * gradient[0].to(own.dtype)
            return added if found.replace else own + added

        logits.register_hook(joined)


def _call(module: nn.Module, inputs: Inputs) -> Tensor:
    logits: Tensor = _logits(module(**inputs) if isinstance(inputs, Mapping) else module(inputs))
    return logits


def _logits(output: Any) -> Any:
    return getattr(output, "logits", output)


def _has_rows(x: Any, rows: int) -> bool:
    """True for a tensor with a row for each example."""
    return isinstance(x, Tensor) and x.ndim > 0 and len(x) == rows
