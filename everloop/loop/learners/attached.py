"""Strategies in a user's own training loop, around any torch optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from everloop.contract import NetworkOutput, Task
from everloop.loop.batch import Batch
from everloop.loop.checkpoint import Checkpoint
from everloop.loop.learners.accompanied import load_weights
from everloop.loop.learners.calls import Calls, Inputs, Pick
from everloop.loop.learners.growing import grow_outputs, grow_weights, replaced
from everloop.loop.learners.joining import Joining
from everloop.loop.learners.user_network import UserNetwork
from everloop.loop.likelihood import Likelihood
from everloop.loop.state import generators, load_generators, pack
from everloop.loop.strategies.base import Forward, Strategy, load_states, states_of, viewing

Examples = tuple[Inputs, Tensor]


def attach(
    strategies: Sequence[Strategy],
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    likelihood: str | Likelihood | None = None,
    outputs: Pick | None = None,
    head: str | nn.Linear | None = None,
    predict: Callable[[nn.Module, Any], Any] | None = None,
    for_task: Callable[[Any, int], Any] | None = None,
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
        module: The network. It takes a tensor (B, ...) or keyword arguments.
        optimizer: The optimizer of the module's weights.
        likelihood: What the outputs mean: "categorical" (logits (B, classes), labels int64 (B,)),
            "bernoulli" (logits and labels from 0 to 1, (B,) or (B, P)), "gaussian" (regression,
            means and numbers, (B,) or (B, P)), "tokens" (logits (B, L, classes), labels int64
            (B, L), those below 0 without a label), or a `Likelihood`. None for categorical, which
            is refused where the network has a single output.
        outputs: What picks the logits from the module's output: a key, an index, the name of an
            attribute, or a function (output) -> logits. By default the output is a tensor, or it
            has `logits`.
        head: The last layer or its name; by default the linear layer from which the logits come.
        predict: Function (module, inputs) -> output, for a module that is called in parts or
            through another method.
        for_task: Function (inputs, task ID) -> inputs as they look for that task, for a module with
            a head for each task.
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
    if accumulate < 1:
        raise ValueError(f"accumulate is {accumulate}; it must be 1 or more")
    calls = Calls(predict, outputs, for_task)
    loop = Attached(module, optimizer, calls, _layer_named(module, head), likelihood)
    loop.label_name, loop.max_grad_norm = label_name, max_grad_norm
    loop.accumulate, loop.scaler = accumulate, scaler
    loop.attach(strategies)
    loop.joining.watch()
    return loop


class Attached(UserNetwork):
    """Strategies in a user's own training loop; `attach` returns it.

    Each row of the inputs is one example.
    """

    label_name: str | None = None
    scaler: torch.amp.GradScaler | None = None

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        calls: Calls,
        head: nn.Linear | None,
        likelihood: str | Likelihood | None,
    ) -> None:
        super().__init__(module, optimizer, calls, head, likelihood)
        self._inspected = False  # True once the current task's first batch has been checked
        self._known: dict[str, nn.Parameter] = {}  # weights when the last task began
        self._versions: int | None = None  # changes before the task; None if unknown
        self.joining = Joining(self)

    def detach(self) -> None:
        """Take all hooks off the module and the optimizer."""
        self.updater.detach()
        self.joining.unwatch()

    def move_to(self, optimizer: torch.optim.Optimizer) -> None:
        """Run the strategies around another optimizer of the same module."""
        self.optimizer = optimizer
        self.attach(self.strategies)

    def begin_task(self, task: int, name: str | None = None) -> None:
        """Begin a task.

        Args:
            task: The task's ID, 0 or more.
            name: The task's name; by default "task-<ID>".

        Raises:
            RuntimeError: If the last task has not ended, or if the optimizer trains weights that
                are no longer in the module.
            ValueError: If a layer has become smaller since the last task.
        """
        if self.current is not None:
            raise RuntimeError(
                f"task {task} was begun during task {self.current.id}; call end_task first"
            )
        if gone := replaced(self._known, self):
            raise RuntimeError(
                f"the module holds a new {gone[0]}, but the optimizer trains the old one; make a "
                "new optimizer, and call move_to with it before begin_task"
            )
        grow_weights(self.strategies, self)
        self.current, self._inspected = Task(task, name or f"task-{task}"), False
        self.begun.add(task)
        for strategy in self.strategies:
            strategy.begin_task(self.current, self)
        self._known = self.weights()
        self.joining.steps, self._versions = 0, self._count_changes()

    def observe(self, inputs: Inputs, labels: Tensor) -> None:
        """Announce the batch of the next forward pass and optimizer steps.

        Args:
            inputs: A tensor (B, ...), or tensors by keyword argument.
            labels: Labels in the shape that the likelihood has, with B rows.

        Raises:
            RuntimeError: If no task has begun.
            ValueError: If, in a task's first batch, the labels do not fit the likelihood, or the
                network can't be called or returns something else than logits.
        """
        if self.current is None:
            raise RuntimeError("a batch was observed outside of a task; call begin_task first")
        if not self._inspected:
            self.inspect(inputs, labels)
            grow_outputs(self.strategies, self.likelihood.size())
            self._inspected = True
        batch = self.batch(inputs, labels)
        self.joining.expect(batch)
        self.updater.expect(batch)
        self.steps += len(batch)
        for strategy in self.strategies:
            strategy.observe(batch, self)

    def _count_changes(self) -> int:
        """Return how often weights were changed in place so far."""
        return sum(p._version for p in self.weights().values())

    def late_forwards(self) -> Sequence[Forward]:
        return self.joining.late()

    def fresh_forward(self, batch: Batch) -> NetworkOutput:
        """Return the output for `batch` without changing the network's statistics."""
        prediction = self.outputs_with(batch, self.copied_buffers())
        return self.output_of(batch, prediction[0])

    def end_task(self, examples: Iterable[Examples]) -> None:
        """End the task.

        Args:
            examples: Batches (inputs, labels) of the task. Strategies use them to protect it, for
                example to estimate which weights matter.

        Raises:
            RuntimeError: If no task has begun, or if another optimizer has trained the module.
            ValueError: If there are no examples.
        """
        if self.current is None:
            raise RuntimeError("end_task was called before begin_task")
        trained = self._versions not in (None, self._count_changes())
        if self.strategies and trained and not self.joining.steps:
            raise RuntimeError(
                f"weights changed in {self.current.name}, but the attached optimizer took no step; "
                "attach to the optimizer that steps, or call move_to with it"
            )
        batches = [self.batch(inputs, labels) for inputs, labels in examples]
        if not batches:
            raise ValueError("end_task got no examples; give one batch or more")
        for strategy in self.strategies:
            strategy.end_task(self.current, batches, self)
        self.joining.expect(None)
        self.updater.expect(None)
        self.current = None

    @contextmanager
    def view(self, task: int) -> Iterator[None]:
        """Prepare the network for evaluating `task`, and put it in evaluation mode."""
        with viewing(self.strategies, Task(task, f"task-{task}"), self), self.evaluating():
            yield

    def check(self, strategies: Sequence[Strategy]) -> None:
        for strategy in strategies:
            if self.calls.for_task is not None and strategy.active and strategy.traits.one_head:
                raise ValueError(
                    f"{strategy.name} predicts among the classes of all tasks, with one head; with "
                    "for_task use replay, derpp or lwf"
                )
        super().check(strategies)

    def frozen_copy(self) -> nn.Module:
        self.joining.unwatch()  # a copied module's hooks would call a copy of this object
        try:
            return super().frozen_copy()
        finally:
            self.joining.watch()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of all strategies and the current task.

        The loop must save the module and the optimizer itself.
        """
        task = None if self.current is None else (self.current.id, self.current.name)
        return {
            "steps": self.steps,
            "task": task,
            "begun": sorted(self.begun),
            "strategies": states_of(self.strategies),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Load the module's and the optimizer's states after this. They may contain weights that
        strategies add to the network here.

        Raises:
            ValueError: If the state belongs to other strategies.
        """
        load_states(self.strategies, state["strategies"], self)
        self._versions = None
        self.steps, self.begun = state["steps"], set(state["begun"])
        self.current = None if state["task"] is None else Task(*state["task"])

    def save(self, folder: Path | str, extra: Mapping[str, Any] = {}) -> None:
        """Save the loop as a checkpoint: network, optimizer, strategies and random generators.

        The generators are the global ones of Python, numpy and torch.

        Args:
            folder: Folder of the checkpoint. An earlier checkpoint there is replaced.
            extra: What else your loop needs, such as the epoch and a scheduler's `state_dict`:
                tensors, arrays and plain Python.

        Raises:
            OSError: If it can't be written; an earlier checkpoint is as before.
            ValueError: If a part of the state can't be saved.
        """
        state = {
            "loop": self.state_dict(),
            "module": pack(dict(self.module.state_dict())),
            "optimizer": self.optimizer.state_dict(),
            "extra": extra,
            "generators": generators(),
        }
        Checkpoint(Path(folder), self.steps).write(state)

    def load(self, folder: Path | str) -> Any:
        """Restore the loop from a checkpoint, and return its `extra`.

        Args:
            folder: Folder of the checkpoint. The loop must be attached as it was then, to a network
                of the same layers.

        Raises:
            ValueError: If the checkpoint is damaged, or it belongs to another network or to other
                strategies.
        """
        state = Checkpoint.open(folder).state()
        self.load_state_dict(state["loop"])  # strategies may add weights to the network
        load_weights(self.module, state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        load_generators(state["generators"])
        return state["extra"]


def _layer_named(module: nn.Module, head: str | nn.Linear | None) -> nn.Linear | None:
    """Return the layer that was given by name or as it is."""
    layers = dict(module.named_modules())
    found = layers.get(head) if isinstance(head, str) else head
    if head is not None and not (isinstance(found, nn.Linear) and found in layers.values()):
        linear = [name for name, layer in layers.items() if isinstance(layer, nn.Linear)]
        raise ValueError(
            f"head is {head}, which is no linear layer of the module; choose one of "
            f"{', '.join(linear) or 'none'}"
        )
    return found
