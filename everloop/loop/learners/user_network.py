"""The network of a user's own training loop, as a model that strategies know."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from everloop.contract import NetworkOutput, Output, Task
from everloop.loop.batch import Batch
from everloop.loop.learners.accompanied import trained_by
from everloop.loop.learners.calls import Calls, Inputs, layers_before, linear_calls
from everloop.loop.learners.labelled import Labelled
from everloop.loop.learners.labels import (
    check_labels,
    fitted,
    likelihood_of,
    padded,
    rows_of,
)
from everloop.loop.likelihood import Categorical, Likelihood
from everloop.loop.model import call_with, last_linear
from everloop.loop.strategies.parts.rng import preserve_rng_state

ALONE = "input"
"""Modality name of inputs that are a single tensor."""


class PerTask:
    """The output of a network with a head for each task, whose other heads are computed on demand.

    Args:
        prediction: The outputs of each example's own head, (1, B, P).
        heads: Function that returns the outputs of the heads of all K tasks, (1, B, K, P).
    """

    value = None

    def __init__(self, prediction: Tensor, heads: Callable[[], Tensor]) -> None:
        self.prediction, self._heads = prediction, heads

    @property
    def heads(self) -> Tensor:
        """The outputs of the heads of all K tasks, (1, B, K, P); 0 for tasks not begun yet."""
        return self._heads()


class UserNetwork(Labelled):
    """A module of any form, called with rows of examples.

    Args:
        module: The network.
        optimizer: The optimizer of its weights.
        calls: How the network is called.
        head: The last layer; None to find it.
        likelihood: What its outputs mean, by name or as an object; None for categorical.

    Raises:
        ValueError: If the likelihood must be given and is not.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        calls: Calls,
        head: nn.Linear | None,
        likelihood: str | Likelihood | None,
    ) -> None:
        self.module, self.optimizer, self.calls = module, optimizer, calls
        self._head, self._given = head, head
        self.likelihood = likelihood_of(likelihood, head or last_linear(module))
        self.current: Task | None = None
        self.begun: set[int] = set()  # IDs of the tasks that have begun

    def weights(self) -> dict[str, nn.Parameter]:
        """Return the parameters that the optimizer trains, by name."""
        return trained_by(self.optimizer, super().weights())

    def last_layer(self) -> nn.Linear:
        """Return the linear layer from which the logits come.

        Raises:
            ValueError: If there is no such layer.
        """
        if self._head is None and self.steps:
            raise ValueError(
                "the network's outputs do not come from one linear layer; pass head=, its last one"
            )
        return super().last_layer() if self._head is None else self._head

    def inspect(self, inputs: Inputs, labels: Tensor) -> None:
        """Check a task's first batch, and find the size of the outputs and the last layer.

        Raises:
            ValueError: If the network can't be called with the inputs, if it returns something else
                than the likelihood needs, or if the labels do not fit.
        """
        obs = self._obs(inputs)
        with preserve_rng_state(self), torch.enable_grad(), linear_calls(self.module) as made:
            try:
                logits = call_with(
                    self.module, self.copied_buffers(), lambda m: self._logits(m, obs, self._task)
                )
            except (TypeError, NotImplementedError) as error:
                raise ValueError(
                    f"the network can't be called with the observed inputs ({error}); pass "
                    "predict=, a function (module, inputs) -> output"
                ) from error
        likelihood = fitted(self.likelihood, logits.detach())
        check_labels(likelihood, logits.detach(), labels)
        if self._given is None:
            found = layers_before(logits, made)
            self._head = found.pop() if len(found) == 1 else None
        if self.calls.for_task is not None and self.steps and isinstance(likelihood, Categorical):
            likelihood = max(likelihood, self.likelihood, key=lambda family: family.size())
        changed = likelihood.size() != self.likelihood.size()
        self.likelihood = likelihood
        if changed:
            self.check(self.strategies)

    @property
    def _task(self) -> int | None:
        return None if self.current is None else self.current.id

    def batch(self, inputs: Inputs, labels: Tensor) -> Batch:
        """Return inputs (B, ...) and labels (B, ...) as a batch of single steps."""
        obs, rows = self._obs(inputs), len(labels)
        start = torch.ones(1, rows, dtype=torch.bool, device=self.device)
        task = torch.full((rows,), -1 if self._task is None else self._task, device=self.device)
        target = rows_of(self.likelihood, labels.detach().to(self.device))[None]
        return Batch(obs, start, target=target, task=task)

    def _obs(self, inputs: Inputs) -> dict[str, Tensor]:
        obs = inputs if isinstance(inputs, Mapping) else {ALONE: inputs}
        return {name: x.detach().to(self.device)[None] for name, x in obs.items()}

    def _logits(self, module: Any, obs: Mapping[str, Tensor], task: int | None) -> Tensor:
        """Return the logits (B, ...) as the network returns them."""
        rows = {name: x.flatten(0, 1) for name, x in obs.items()}
        return self.calls.logits(module, rows[ALONE] if set(rows) == {ALONE} else rows, task)

    def forward(self, batch: Batch, module: nn.Module | None = None) -> NetworkOutput:
        """Return the output for `batch`, each example by the head of its own task."""
        network = self.module if module is None else module
        if self.calls.for_task is None or batch.task is None:
            return self.output_of(batch, self._logits(network, batch.obs, self._task), network)
        result = torch.zeros(len(batch), self.likelihood.size(), device=self.device)
        for task in sorted(set(batch.task.tolist())):
            rows = torch.nonzero(batch.task == task)[:, 0]
            logits = self._row_outputs(self._logits(network, batch[rows].obs, task))
            result = result.index_copy(0, rows, logits)
        return self.output_of(batch, result, network)

    def output_of(
        self, batch: Batch, logits: Tensor, module: nn.Module | None = None
    ) -> NetworkOutput:
        """Return the output for `batch` whose logits are `logits`, (B, ...)."""
        prediction = self._row_outputs(logits)[None]
        if self.calls.for_task is None:
            return Output(prediction)
        return PerTask(prediction, lambda: self._heads(batch, module or self.module))

    def _heads(self, batch: Batch, module: nn.Module) -> Tensor:
        heads = torch.zeros(
            1, len(batch), max(self.begun) + 1, self.likelihood.size(), device=self.device
        )
        for task in sorted(self.begun):
            logits = self._row_outputs(self._logits(module, batch.obs, task))
            heads = heads.index_copy(
                2, torch.tensor([task], device=self.device), logits[None, :, None]
            )
        return heads

    def _row_outputs(self, logits: Tensor) -> Tensor:
        """Return logits (B, ...) as (B, P); P is that of the widest head."""
        rows = rows_of(self.likelihood, logits)
        narrow = isinstance(self.likelihood, Categorical) and rows.shape[1] < self.likelihood.size()
        return padded(rows, self.likelihood.size(), self.likelihood) if narrow else rows

    def initial_state(self, batch: int) -> Tensor:
        return torch.zeros(batch, 0, device=self.device)
