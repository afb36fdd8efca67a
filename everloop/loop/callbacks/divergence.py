"""Divergence of the network from what it was at each task's end, in weights and in function."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call

from everloop.loop.batch import Batch, subsample
from everloop.loop.learners.accompanied import load_weights
from everloop.loop.learners.learner import Learner
from everloop.loop.run import Callback, Run
from everloop.loop.state import pack

PROBE = 128
"""The largest number of examples of a task on which outputs are compared."""


@dataclass(frozen=True)
class Anchor:
    """The network at a task's end, and its outputs then on a probe batch of that task.

    Args:
        network: A frozen copy of the network.
        probe: Examples of the task.
        outputs: The predictions of `network` for them, (T, B, P).
    """

    network: nn.Module
    probe: Batch
    outputs: Tensor

    def state_dict(self) -> dict[str, Any]:
        """Return copies of the weights, the examples and the outputs."""
        weights, probe = self.network.state_dict(), vars(self.probe)
        state: dict[str, Any] = pack({"weights": weights, "probe": probe, "outputs": self.outputs})
        return state


class Divergence(Callback):
    """Logs the divergence of the network from that at the end of each task.

    Outputs are compared on a fixed probe batch of each ended task. There are these numbers for each
    ended task and each of the network's top-level modules (encoders, attention, ...), where *
    marks the values at the task's end:

        weights/<task>/<module>  |w - w*| / |w*|
        kl/<task>/<module>       mean KL(p* || p* with the present weights of this module), in nats
        kl/<task>/network        mean KL(p* || p), in nats

    The KL by module shows where forgetting happens: it is the damage that the drift of one module
    does by itself.

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
            for task, batch in run.samples:
                self.remember(task.name, run.learner, subsample([batch], PROBE)[0])
        values = self.update(run.learner).values
        if values:
            run.log({f"divergence/{name}": value for name, value in values.items()})

    def remember(self, task: str, learner: Learner, probe: Batch) -> None:
        """Make the present network the anchor of a task.

        Args:
            task: Name of the task. An earlier anchor of that name is replaced.
            learner: The learner of the network.
            probe: Examples of the task on which to compare outputs.
        """
        network = learner.frozen_copy()
        with torch.no_grad():
            self.anchors[task] = Anchor(network, probe, learner.outputs(probe, network))

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
        for task, anchor in self.anchors.items():
            with learner.evaluating():
                now = learner.outputs(anchor.probe)
            self.values[f"kl/{task}/network"] = _kl(learner, anchor, now)
            for name, module in learner.module.named_children():
                weights = {f"{name}.{key}": value for key, value in module.state_dict().items()}
                # A module that a strategy has extended can't be put into the earlier network.
                if weights and weights.keys() <= anchor.network.state_dict().keys():
                    self.values[f"weights/{task}/{name}"] = _distance(anchor.network, weights)
                    mixed = _outputs_with(learner, anchor, weights)
                    self.values[f"kl/{task}/{name}"] = _kl(learner, anchor, mixed)
        return self

    def _restored(self, run: Run) -> None:
        states: Mapping[str, Any] = self.anchors
        self.anchors = {task: _restored(task, states[task], run.learner) for task in states}


def _restored(task: str, state: Mapping[str, Any], learner: Learner) -> Anchor:
    """Return the anchor of a loaded state, with a network made from the learner's."""
    network = learner.frozen_copy()
    try:
        load_weights(network, state["weights"])
    except ValueError:
        raise ValueError(
            f"Divergence can't restore the network at the end of {task}, because a strategy has "
            "added weights since; begin the run again"
        ) from None
    return Anchor(network, Batch(**state["probe"]), state["outputs"])


def _kl(learner: Learner, anchor: Anchor, outputs: Tensor) -> float:
    """Return the mean KL of the anchor's outputs from `outputs`, in nats."""
    return float(learner.likelihood.kl(anchor.outputs, outputs).mean())


def _outputs_with(learner: Learner, anchor: Anchor, weights: Mapping[str, Tensor]) -> Tensor:
    """Return the outputs of the anchor's network with some weights replaced."""
    probe = anchor.probe
    arguments = probe.obs, learner.initial_state(len(probe)), probe.start
    outputs: Tensor = functional_call(anchor.network, dict(weights), arguments)[0].prediction
    return outputs


def _distance(network: nn.Module, weights: Mapping[str, Tensor]) -> float:
    """Return |w - w*| / |w*|, where w* are the weights of `network`; buffers do not count."""
    old = {name: p for name, p in network.named_parameters() if name in weights}
    moved = sum(float(((weights[name] - p) ** 2).sum()) for name, p in old.items())
    return float((moved / max(sum(float((p**2).sum()) for p in old.values()), 1e-12)) ** 0.5)
