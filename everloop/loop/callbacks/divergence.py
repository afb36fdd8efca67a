"""Divergence of the network from what it was at each task's end, in weights and in function."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from everloop.contract import Task
from everloop.loop.batch import Batch, subsample
from everloop.loop.evaluate import viewed
from everloop.loop.learners.learner import Learner
from everloop.loop.run import Callback, Run
from everloop.loop.state import pack

PROBE = 128
"""The largest number of examples of a task on which outputs are compared."""


@dataclass(frozen=True)
class Anchor:
    """The network at a task's end, and its outputs then on a probe batch of that task.

    Args:
        task: The task.
        weights: The network's weights and buffers by name, as evaluations of the task saw them.
        probe: Examples of the task.
        outputs: The predictions for them, (T, B, P).
    """

    task: Task
    weights: Mapping[str, Tensor]
    probe: Batch
    outputs: Tensor

    def state_dict(self) -> dict[str, Any]:
        """Return copies of the weights, the examples and the outputs."""
        state: dict[str, Any] = pack(
            {
                "task": [self.task.id, self.task.name],
                "weights": self.weights,
                "probe": vars(self.probe),
                "outputs": self.outputs,
            }
        )
        return state

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """Return the anchor that gave `state`."""
        probe = Batch(**pack(state["probe"]))
        return cls(Task(*state["task"]), pack(state["weights"]), probe, pack(state["outputs"]))


class Divergence(Callback):
    """Logs the divergence of the network from that at the end of each task.

    Outputs are compared on a fixed probe batch of each ended task. There are these numbers for each
    ended task and each of the network's top-level modules (encoders, attention, ...), where *
    marks the values at the task's end and the mean is over steps, or over tokens that have a tag:

        weights/<task>/<module>  |w - w*| / |w*|
        kl/<task>/<module>       mean KL(p* || p* with the present weights of this module), in nats
        kl/<task>/network        mean KL(p* || p), in nats

    The KL by module shows where forgetting happens: it is the damage that the drift of one module
    does by itself. All of it is seen as an evaluation of the task would see it: with the mask, the
    adapter or the classifier that a strategy's `view` sets up. Buffers, such as the statistics of
    norms, act on the outputs but do not count as weights.

    Args:
        threshold: `detected` is True if kl/<task>/network of any task is above it, in nats. It must
            be above 0.

    Attributes:
        values: The numbers of the last update, by name.
        anchors: The network at each ended task, by the name of the task.

    Raises:
        ValueError: If the threshold is not above 0.
    """

    state = ("values", "anchors")

    def __init__(self, threshold: float = 0.1) -> None:
        if not threshold > 0:
            raise ValueError(f"threshold is {threshold}; it must be above 0")
        self.threshold = threshold
        self.values: dict[str, float] = {}
        self.anchors: dict[str, Anchor] = {}

    def on_evaluation(self, run: Run) -> None:
        if run.result.evaluations[-1].ends_phase:
            for task, batches in run.samples:
                self.remember(task, run.learner, Batch.pool(subsample(batches, PROBE)))
        values = self.update(run.learner).values
        if values:
            run.log({f"divergence/{name}": value for name, value in values.items()})

    @torch.no_grad()
    def remember(self, task: Task, learner: Learner, probe: Batch) -> None:
        """Make the present network the anchor of a task.

        Args:
            task: The task. An earlier anchor of it is replaced.
            learner: The learner of the network.
            probe: Examples of the task on which to compare outputs.
        """
        with viewed(learner, learner.strategies, task):
            weights = pack(dict(learner.module.state_dict()))
            self.anchors[task.name] = Anchor(task, weights, probe, learner.outputs(probe))

    @property
    def detected(self) -> bool:
        """True if the last update found a task that diverged by more than the threshold."""
        return any(
            v > self.threshold
            for k, v in self.values.items()
            if k.startswith("kl/") and k.endswith("/network")
        )

    @torch.no_grad()
    def update(self, learner: Learner) -> Self:
        """Compute `values` for the present network, and return this object."""
        self.values = {}
        for anchor in self.anchors.values():
            with viewed(learner, learner.strategies, anchor.task):
                self._measure(learner, anchor)
        return self

    def _measure(self, learner: Learner, anchor: Anchor) -> None:
        """Compute the values of one task, in the strategies' view of it."""
        task, now = anchor.task.name, learner.module.state_dict()
        parameters = {name for name, _ in learner.module.named_parameters()}
        self.values[f"kl/{task}/network"] = _kl(learner, anchor, learner.outputs(anchor.probe))
        if not anchor.weights.keys() <= now.keys():
            return  # a strategy has replaced layers, so that no mixture with the earlier ones works
        for module, part in learner.module.named_children():
            own = {f"{module}.{name}" for name in part.state_dict()}
            # A module that a strategy has extended can't be put into the earlier network.
            if not own or not all(_same_shape(anchor.weights.get(name), now[name]) for name in own):
                continue
            if own & parameters:
                distance = _distance(anchor.weights, now, own & parameters)
                self.values[f"weights/{task}/{module}"] = distance
            earlier = {name: w for name, w in anchor.weights.items() if name not in own}
            mixed = learner.outputs_with(anchor.probe, earlier)
            self.values[f"kl/{task}/{module}"] = _kl(learner, anchor, mixed)

    def _restored(self, run: Run) -> None:
        states: Mapping[str, Any] = self.anchors
        self.anchors = {name: Anchor.from_state(state) for name, state in states.items()}


def _same_shape(old: Tensor | None, new: Tensor) -> bool:
    return old is not None and old.shape == new.shape


def _kl(learner: Learner, anchor: Anchor, outputs: Tensor) -> float:
    """Return the mean KL of the anchor's outputs from `outputs`, in nats."""
    return float(learner.mean_kl(anchor.outputs, outputs, anchor.probe.target))


def _distance(
    old: Mapping[str, Tensor], new: Mapping[str, Tensor], names: Collection[str]
) -> float:
    """Return |w - w*| / |w*| over the weights w with these names, where w* are the old ones."""
    moved = sum(float(((new[name] - old[name]) ** 2).sum()) for name in names)
    return float((moved / max(sum(float((old[name] ** 2).sum()) for name in names), 1e-12)) ** 0.5)
