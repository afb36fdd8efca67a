"""Strategies in anybody's training loop that steps a torch optimizer."""

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
from everloop.loop.strategies.base import Strategy, load_states, states_of

Inputs = Tensor | Mapping[str, Tensor]
Examples = tuple[Inputs, Tensor]
ALONE = "input"
"""The name of inputs that are one tensor."""


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
    """Let `strategies` accompany every step that `optimizer` takes, whoever calls it, until
    `.detach()`.

    The loop goes on as it is, and tells when a task begins and ends and what is learned from:

        loop = attach([EWC(100.0)], module, optimizer)
        loop.begin_task(0)
        ... for each batch, before the forward pass: loop.observe(x, y)
        loop.end_task([(x, y), ...])
        with loop.view(0): ... evaluate ...

    module: a classifier; called with the inputs, a tensor (B, ...) or keywords, it gives logits (B,
        classes), or something with `logits`.
    classes: how many; by default what the last linear layer has.
    predict: (module, inputs) -> logits (B, classes), where the module is called in another way.
    label_name: the keyword under which the module itself is given its labels, as Hugging Face's
        models are; then what it is called with in training is observed by itself.
    max_grad_norm: clips after the strategies; the loop's own clipping, which comes before them,
        should be off.
    accumulate: batches whose losses the loop divides by their number, and adds up to one step.
    scaler: that of the loop, where it multiplies its loss; the optimizer is not to be fused then.
    What replaces the loop's own loss (ER-ACE, iCaRL, La-MAML) takes it for the mean cross-entropy.
    Raises ValueError if a strategy cannot work here, before anything is touched.
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
    """What `attach` gives: tells the strategies what a foreign loop does.

    One row of inputs is one example.
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
            raise ValueError(f"accumulate is {accumulate}, allowed: 1 or more")
        self.accumulate, self.scaler = accumulate, scaler
        self.module, self.optimizer, self.max_grad_norm = module, optimizer, max_grad_norm
        self.predict, self.label_name = predict or _call, label_name
        self.likelihood = Categorical(
            self.last_layer().out_features if classes is None else classes
        )
        self.current: Task | None = None
        self._asking = False  # a forward pass of ours, not of the loop
        self.attach(strategies)
        self._watch()

    def _watch(self) -> None:
        """Look at every forward pass of the module."""
        self._hooks = [
            self.module.register_forward_pre_hook(self._before_forward, with_kwargs=True),
            self.module.register_forward_hook(self._after_forward),
        ]

    def detach(self) -> None:
        """Leave the loop alone from now on."""
        self.updater.detach()
        for hook in self._hooks:
            hook.remove()

    def move_to(self, optimizer: torch.optim.Optimizer) -> None:
        """Follow the steps of another optimizer of the same module, in place of the last one's."""
        self.optimizer = optimizer
        self.attach(self.strategies)

    def begin_task(self, task: int, name: str | None = None) -> None:
        """What comes now is of `task`."""
        self.current = Task(task, name or f"task-{task}")
        for strategy in self.strategies:
            strategy.begin_task(self.current, self)

    def observe(self, inputs: Inputs, labels: Tensor) -> None:
        """The next forward pass is of these, and the next step learns from it.

        Raises RuntimeError outside of a task.
        """
        if self.current is None:
            raise RuntimeError("a batch was observed outside of a task; call begin_task first")
        self.minibatch = self.batch(inputs, labels)
        self.steps += len(self.minibatch)
        for strategy in self.strategies:
            strategy.observe(self.minibatch, self)

    def end_task(self, examples: Iterable[Examples]) -> None:
        """The task is over; `examples` are batches of it, inputs and labels, for the strategies to
        consolidate on.
        """
        if self.current is None:
            raise RuntimeError("end_task was called before begin_task")
        batches = [self.batch(inputs, labels) for inputs, labels in examples]
        if not batches:
            raise ValueError("end_task got no examples; give one batch or more")
        for strategy in self.strategies:
            strategy.end_task(self.current, self, batches)
        self.minibatch, self.current = None, None

    @contextmanager
    def view(self, task: int) -> Iterator[None]:
        """The network as it is to be when `task` is evaluated."""
        with ExitStack() as views:
            for strategy in self.strategies:
                views.enter_context(strategy.view(Task(task, f"task-{task}"), self))
            views.enter_context(self.evaluating())
            yield

    def weights(self) -> dict[str, nn.Parameter]:
        """Those that the optimizer trains."""
        trained = {p for group in self.optimizer.param_groups for p in group["params"]}
        return {name: p for name, p in super().weights().items() if p in trained}

    def batch(self, inputs: Inputs, labels: Tensor) -> Batch:
        """Inputs (B, ...) and labels (B,) as a batch of single steps."""
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
        """Mean cross-entropy."""
        return F.cross_entropy(outputs.flatten(0, 1), target.flatten())

    def targets(self, batch: Batch) -> Tensor:
        """The labels."""
        assert batch.target is not None, "a batch of a stream holds labels"
        return batch.target

    def observed(self, batch: Batch) -> Tensor | None:
        return batch.target

    def frozen_copy(self) -> nn.Module:
        for hook in self._hooks:
            hook.remove()  # a copy of them would copy this learner, and call it
        frozen = copy.deepcopy(self.module).eval().requires_grad_(False)
        self._watch()
        return frozen

    def state_dict(self) -> dict[str, Any]:
        """Of all strategies, and the task at hand; the module's and the optimizer's are the loop's
        own business.
        """
        own = {
            "steps": self.steps,
            "task": None if self.current is None else (self.current.id, self.current.name),
        }
        return own | {"strategies": states_of(self.strategies)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """To be loaded before the module's and the optimizer's, which may need weights that come
        back with it.

        Raises:
            ValueError: For the state of other strategies.
        """
        load_states(self.strategies, state["strategies"], self)
        self.steps = state["steps"]
        self.current = None if state["task"] is None else Task(*state["task"])

    def _before_forward(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if (
            self.label_name is None
            or self._asking
            or not module.training
            or not torch.is_grad_enabled()
        ):
            return
        labels = kwargs.get(self.label_name)
        if labels is not None:
            self.observe(
                {
                    n: x
                    for n, x in kwargs.items()
                    if n != self.label_name and _has_rows(x, len(labels))
                },
                labels,
            )

    def _after_forward(self, module: nn.Module, args: Any, output: Any) -> None:
        """Let the gradients of the strategies' output losses join where the loop's own flows back
        to the logits.
        """
        if self._asking or self.minibatch is None or not torch.is_grad_enabled():
            return
        logits = _logits(output)
        if (
            not isinstance(logits, Tensor)
            or not logits.requires_grad
            or len(logits) != len(self.minibatch)
        ):
            return
        leaf = logits.detach().float()[None].requires_grad_()
        losses = self.updater.output_losses(self.minibatch, Output(leaf))
        if losses:
            (gradient,) = torch.autograd.grad(torch.stack(losses).sum(), leaf)
            scale = (
                1.0 if self.scaler is None else self.scaler.get_scale()
            ) / self.accumulate  # as the loop's own loss
            logits.register_hook(lambda own: own + scale * gradient[0].to(own.dtype))  # type: ignore[no-untyped-call]


def _call(module: nn.Module, inputs: Inputs) -> Tensor:
    logits: Tensor = _logits(module(**inputs) if isinstance(inputs, Mapping) else module(inputs))
    return logits


def _logits(output: Any) -> Any:
    return getattr(output, "logits", output)


def _has_rows(x: Any, rows: int) -> bool:
    """Whether it is a tensor with a row for each example."""
    return isinstance(x, Tensor) and x.ndim > 0 and len(x) == rows
