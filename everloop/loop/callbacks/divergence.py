"""How far the network has drifted since each task's end, in weights and in function."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn
from torch.func import functional_call

from everloop.loop.batch import Batch, subsample
from everloop.loop.learners.learner import Learner
from everloop.loop.run import Callback, Run

PROBE = 128  # examples of a task on which its outputs are compared


class Divergence(Callback):
    """Distances between today's network and the one at each ended task, on a fixed probe batch of
    that task.

    For every ended task, and for each of the network's top-level modules (encoders, attention,
    ...):

        weights/<task>/<module>  |w - w*| / |w*|
        kl/<task>/<module>       mean KL(then || then with this module's weights of today), nats
        kl/<task>/network        mean KL(then || now), nats

    The KL by module says where forgetting happens: the damage that this module's drift does by
    itself.

    threshold: `detected` is True when any task's kl/<task>/network is above it, in nats.
    """

    def __init__(self, threshold: float = 0.1) -> None:
        if not threshold > 0:
            raise ValueError(f"threshold is {threshold}, allowed: more than 0")
        self.threshold = threshold
        self.values: dict[str, float] = {}
        self._anchors: dict[str, tuple[nn.Module, Batch, Tensor]] = {}

    def on_evaluation(self, run: Run) -> None:
        if run.result.evaluations[-1].ends_phase:
            for task, batch in run.samples:
                self.remember(task.name, run.learner, subsample([batch], PROBE)[0])
        values = self.update(run.learner).values
        if values:
            run.log({f"divergence/{name}": value for name, value in values.items()})

    def remember(self, task: str, learner: Learner, probe: Batch) -> None:
        """Take today's network as the reference for `task`, judged on `probe`."""
        frozen = learner.frozen_copy()
        with torch.no_grad():
            self._anchors[task] = frozen, probe, learner.outputs(probe, frozen)

    @property
    def detected(self) -> bool:
        """Whether the last update found a task that diverged by more than the threshold."""
        return any(
            v > self.threshold
            for k, v in self.values.items()
            if k.startswith("kl/") and k.endswith("/network")
        )

    @torch.no_grad()
    def update(self, learner: Learner) -> Self:
        """Measure; then read `values` and `detected`."""
        self.values = {}
        for task, (frozen, probe, then) in self._anchors.items():
            with learner.evaluating():
                self.values[f"kl/{task}/network"] = self._kl(learner, then, learner.outputs(probe))
            for name, module in learner.module.named_children():
                weights = {f"{name}.{key}": value for key, value in module.state_dict().items()}
                if (
                    weights and weights.keys() <= frozen.state_dict().keys()
                ):  # a module that has grown is another one
                    self.values[f"weights/{task}/{name}"] = _distance(frozen, weights)
                    mixed = functional_call(
                        frozen, weights, (probe.obs, learner.initial_state(len(probe)), probe.start)
                    )[0]
                    self.values[f"kl/{task}/{name}"] = self._kl(learner, then, mixed.prediction)
        return self

    @staticmethod
    def _kl(learner: Learner, then: Tensor, now: Tensor) -> float:
        return float(learner.likelihood.kl(then, now).mean())


def _distance(frozen: nn.Module, weights: dict[str, Tensor]) -> float:
    old = frozen.state_dict()
    moved = sum(float(((value - old[key]) ** 2).sum()) for key, value in weights.items())
    return float((moved / max(sum(float((old[key] ** 2).sum()) for key in weights), 1e-12)) ** 0.5)
