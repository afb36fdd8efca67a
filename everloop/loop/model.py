"""What a strategy sees of a learner: the network, its loss and its likelihood, and the views of
both.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.func import functional_call

from everloop.contract import CUE, NetworkOutput, Output, World
from everloop.loop.batch import Batch
from everloop.loop.likelihood import Likelihood


class Model(ABC):
    """A network, what it is trained for, and how it is asked.

    It is what strategies and monitors work with. It knows nothing of how training is driven: that
    is a `Learner`, which is a `Model` with a world, or an `Attached` loop of somebody's own.

    Attributes:
        module: The network, called as `module(obs, state, start) -> (output, state)` with obs[m]
            (T, B, ...), state (B, H) and start bool (T, B). `module.initial_state(B)` gives the
            empty state. Layers inside see time and batch as one leading axis (t b).
        optimizer: What steps the network's weights.
        likelihood: The distribution that the network's outputs parametrize.
        world: The world that it is trained in; None in an attached loop.
        strategies: The strategies attached to it, for those that ask about the others.
        steps: World steps learned from so far.
        minibatch: The batch of the present update.
        sequence_length: Steps of an example.
        labelled: True if targets are labels, which the world reveals.
        recalls_ahead: True if replayed examples share a forward pass with the fresh batch.
        accumulate: Batches whose mean gradient makes one step.
        may_grow: True if the network may get new weights during training.
        on_log: Called with {name: value} now and then, with numbers about training.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer
    likelihood: Likelihood
    world: World | None = None
    strategies: Sequence[Any] = ()
    steps: int = 0
    minibatch: Batch | None = None
    sequence_length: int = 1
    labelled: bool = False
    recalls_ahead: bool = False
    accumulate: int = 1
    may_grow: bool = True
    on_log: Callable[[dict[str, float]], None] = staticmethod(lambda scalars: None)

    def apply(
        self, module: nn.Module, obs: Mapping[str, Tensor], state: Tensor, start: Tensor
    ) -> tuple[NetworkOutput, Tensor]:
        """(output, state after it) of `module`; every forward pass goes through here."""
        result: tuple[NetworkOutput, Tensor] = module(obs, state, start)
        return result

    def initial_state(self, batch: int) -> Tensor:
        """The network's empty memory, for `batch` examples."""
        state: Tensor = self.module.initial_state(batch)  # type: ignore[operator]
        return state

    def forward(self, batch: Batch, module: nn.Module | None = None) -> NetworkOutput:
        """Outputs for `batch`, its memory empty at first; of `module` instead of the learner's if
        given.
        """
        return self.apply(
            module or self.module, batch.obs, self.initial_state(len(batch)), batch.start
        )[0]

    def forward_joined(self, batches: Sequence[Batch]) -> list[NetworkOutput]:
        """Outputs for each of `batches`, of examples of the same length, from one forward pass."""
        output = self.forward(Batch.join(batches))
        sizes = [len(batch) for batch in batches]
        parts = [
            None if x is None else x.split(sizes, 1)
            for x in (output.prediction, output.value, getattr(output, "heads", None))
        ]
        return [Output(*(None if x is None else x[i] for x in parts)) for i in range(len(batches))]  # type: ignore[arg-type]

    def outputs(self, batch: Batch, module: nn.Module | None = None) -> Tensor:
        """The prediction (T, B, P): logits, or the parameters of the action's distribution."""
        return self.forward(batch, module).prediction

    def outputs_with(self, batch: Batch, weights: Mapping[str, Tensor] | None) -> Tensor:
        """`outputs` as they would be with these weights (and buffers), by name, in place of the
        network's own, if they are given.
        """
        if weights is None:
            return self.outputs(batch)

        def module(*args: Any, **kwargs: Any) -> Any:
            return functional_call(self.module, dict(weights), args, kwargs)

        with self._keeping_activations():
            return self.apply(module, batch.obs, self.initial_state(len(batch)), batch.start)[  # type: ignore[arg-type]
                0
            ].prediction

    @contextmanager
    def _keeping_activations(self) -> Iterator[None]:
        """Without checkpointing, which would compute them again when the weights are no longer
        those that were given.
        """
        parts = [part for part in self.module.modules() if getattr(part, "checkpointing", False)]
        for part in parts:
            part.checkpointing = False  # type: ignore[assignment]
        try:
            yield
        finally:
            for part in parts:
                part.checkpointing = True  # type: ignore[assignment]

    def copied_buffers(self) -> dict[str, Tensor]:
        """Copies of the network's buffers; given to `outputs_with` or `loss`, the statistics of the
        network itself stay as they are.
        """
        return {name: buffer.clone() for name, buffer in self.module.named_buffers()}

    def last_layer(self) -> nn.Linear:
        """The linear layer that the prediction comes from.

        Raises ValueError where there is none.
        """
        linear = [
            layer
            for name, layer in self.module.named_modules()
            if isinstance(layer, nn.Linear) and not name.startswith("value")
        ]
        if not linear:
            raise ValueError(
                "the network has no linear layer; features need one that ends in a linear layer"
            )
        return linear[-1]

    def features(self, batch: Batch) -> Tensor:
        """What the last layer sees, (B, size) for examples of one step."""
        seen: list[Tensor] = []
        handle = self.last_layer().register_forward_pre_hook(
            lambda layer, inputs: seen.append(inputs[0])
        )
        try:
            self.outputs(batch)
        finally:
            handle.remove()
        return seen[0]

    def loss(self, batch: Batch, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """The mean loss of the outputs against `batch.target`: a scalar without side effects.

        With `weights` by name as if they were the network's own.
        """
        assert batch.target is not None, "a batch that is learned from holds what should come out"
        return self.loss_of(self.outputs_with(batch, weights), batch.target)

    @abstractmethod
    def loss_of(self, outputs: Tensor, target: Tensor) -> Tensor:
        """`loss` of outputs that are there already."""

    def log_likelihood(self, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
        """log p(x | example), (B,), summed over an example's steps.

        With a generator x is drawn from the model itself, else it is the label or action in the
        batch.
        """
        p = self.outputs(batch)
        if generator is not None:
            x = self.likelihood.sample(p.detach(), generator)
        else:
            taken = self.observed(batch)
            if taken is None:
                raise ValueError(
                    "the batch holds neither labels nor actions; give one of them, or a generator"
                )
            x = taken
        return self.likelihood.log_prob(p, x).sum(0)

    @abstractmethod
    def targets(self, batch: Batch) -> Tensor:
        """What a memory should keep as `target` for `batch`, if it is stored now."""

    @abstractmethod
    def observed(self, batch: Batch) -> Tensor | None:
        """What the world said (labels) or the agent did (actions) in `batch`, (T, B, ...)."""

    def weights(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by name."""
        return {name: p for name, p in self.module.named_parameters() if p.requires_grad}

    def add_weights(self, weights: Sequence[nn.Parameter]) -> None:
        """Let the optimizer train these as well, in its first group; its state for all others
        stays.
        """
        self.optimizer.param_groups[0]["params"].extend(
            weights
        )  # a group of their own would be none that a schedule knows

    def frozen_copy(self) -> nn.Module:
        """A copy of the network that no optimizer will ever change."""
        return copy.deepcopy(self.module).eval().requires_grad_(False)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """The network as it is judged: without what is random in training, such as dropout."""
        # cuDNN goes back through a recurrent layer only in training
        parts = [
            part
            for part in self.module.modules()
            if part.training and not isinstance(part, nn.RNNBase)
        ]
        for part in parts:
            part.training = False
        try:
            yield
        finally:
            for part in parts:
                part.training = True

    def augmented(self, batch: Batch) -> Batch:
        """`batch` as it is to be learned from: itself, unless the learner makes its images a little
        different each time.
        """
        return batch

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.module.parameters()).device

    @property
    def task_aware(self) -> bool:
        """Whether the world shows which task it is, as the modality "cue"."""
        space = None if self.world is None else self.world.single_observation_space
        return isinstance(space, spaces.Dict) and CUE in space.spaces
