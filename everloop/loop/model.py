"""What a strategy sees of a learner: the network, its loss and its likelihood."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import Any

import torch
from einops import reduce
from gymnasium import spaces
from torch import Tensor, nn
from torch.func import functional_call

from everloop.contract import CUE, NetworkOutput, Output, World
from everloop.loop.batch import Batch
from everloop.loop.likelihood import Categorical, Likelihood, TokenCategorical
from everloop.loop.tally import Tally

Weights = Mapping[str, Tensor]


class _Bound(nn.Module):
    """A function of a module, as a module, so that `functional_call` can replace the weights."""

    def __init__(self, module: nn.Module, function: Callable[[nn.Module], Tensor]) -> None:
        super().__init__()
        self.module, self.function = module, function

    def forward(self) -> Tensor:
        return self.function(self.module)


def call_with(
    module: nn.Module, weights: Weights, function: Callable[[nn.Module], Tensor]
) -> Tensor:
    """Return `function(module)`, where weights and buffers are replaced by others of their name."""
    given = {f"module.{name}": value for name, value in weights.items()}
    result: Tensor = functional_call(_Bound(module, function), given, ())
    return result


def frozen_copy_of(module: nn.Module, memo: Mapping[int, Any] | None = None) -> nn.Module:
    """Return a copy of `module` in evaluation mode, without gradients.

    Tensors that a layer computed and keeps, such as weights of `weight_norm` and cached
    activations, are copied by their value.

    Args:
        module: The module.
        memo: What stands in the copy for objects of the original, by their `id`.

    Raises:
        ValueError: If the module holds something that can't be copied.
    """
    known = dict(memo or {})
    known |= {id(x): x.detach().clone() for x in _computed(module, set(known))}
    try:
        return copy.deepcopy(module, known).eval().requires_grad_(False)
    except (TypeError, RuntimeError, AttributeError) as error:
        raise ValueError(
            f"the network can't be copied ({error}); take out what can't be, or use a strategy "
            "without an old network, such as ewc or replay"
        ) from error


def _computed(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """Yield the tensors with a graph that an object holds, also in objects inside it."""
    if id(value) in seen or isinstance(value, type):
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        if not value.is_leaf:
            yield value
        return
    if isinstance(value, Mapping):
        parts = list(value.values())
    elif isinstance(value, list | tuple | set):
        parts = list(value)
    else:
        parts = list(getattr(value, "__dict__", {}).values())
    for part in parts:
        yield from _computed(part, seen)


def last_linear(module: nn.Module) -> nn.Linear | None:
    """Return the linear layer that was registered last, value heads aside; None without one."""
    linear = [
        layer
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear) and not name.startswith("value")
    ]
    return linear[-1] if linear else None


class Model(ABC):
    """A network, its loss and the distribution that its outputs parametrize.

    Strategies and monitors work with a model. It does not know how training is driven. A `Learner`
    is a model with a world. An `Attached` is a model in a user's own training loop.

    Attributes:
        module: The network, called as `module(obs, state, start) -> (output, state)` with obs[m]
            (T, B, ...), state (B, H) and start bool (T, B). `module.initial_state(B)` returns the
            empty state. Layers inside see time and batch as one leading axis (t b).
        optimizer: The optimizer of the network's weights.
        likelihood: The distribution that the network's outputs parametrize.
        world: The world in which the network is trained; None in an attached loop.
        strategies: The attached strategies, so that each can look up the others.
        steps: World steps learned from so far.
        sequence_length: Number of steps of an example.
        labelled: True if the targets are labels that the world reveals.
        accumulate: Number of batches whose gradients are averaged for one optimizer step.
        supports_new_weights: True if strategies may add weights to the network during training.
        max_loss: Training loss above which an update counts as divergence.
        on_log: Called from time to time with scalars about training, {name: value}.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer
    likelihood: Likelihood
    world: World | None = None
    strategies: Sequence[Any] = ()
    steps: int = 0
    sequence_length: int = 1
    labelled: bool = False
    accumulate: int = 1
    supports_new_weights: bool = True
    max_loss: float = math.inf
    on_log: Callable[[dict[str, float]], None] = staticmethod(lambda scalars: None)

    @cached_property
    def tally(self) -> Tally:
        """Counts of updates and of presented examples; strategies add what they do themselves."""
        return Tally()

    @property
    def classes(self) -> int | None:
        """Number of classes if every example has one class label, else None."""
        one_label = self.labelled and isinstance(self.likelihood, Categorical)
        return self.likelihood.size() if one_label else None

    @property
    def device(self) -> torch.device:
        """Device of the network's weights."""
        return next(self.module.parameters()).device

    @property
    def task_aware(self) -> bool:
        """True if the world shows the task, as the modality "cue"."""
        space = None if self.world is None else self.world.single_observation_space
        return isinstance(space, spaces.Dict) and CUE in space.spaces

    def apply(
        self, module: nn.Module, obs: Mapping[str, Tensor], state: Tensor, start: Tensor
    ) -> tuple[NetworkOutput, Tensor]:
        """Return output and next state of `module`. Every forward pass goes through here."""
        result: tuple[NetworkOutput, Tensor] = module(obs, state, start)
        return result

    def initial_state(self, batch: int) -> Tensor:
        """Return the network's empty memory for `batch` examples."""
        state: Tensor = self.module.initial_state(batch)  # type: ignore[operator]
        return state

    def forward(self, batch: Batch, module: nn.Module | None = None) -> NetworkOutput:
        """Return the output for `batch`, starting from an empty memory.

        Args:
            batch: Examples of the same length.
            module: The network to use; None means the model's own.
        """
        state = self.initial_state(len(batch))
        return self.apply(module or self.module, batch.obs, state, batch.start)[0]

    def forward_joined(self, batches: Sequence[Batch]) -> list[NetworkOutput]:
        """Return the output for each of `batches` from one forward pass.

        Args:
            batches: Batches whose examples all have the same length.
        """
        output = self.forward(Batch.join(batches))
        sizes = [len(batch) for batch in batches]

        def split(x: Tensor | None) -> Sequence[Tensor | None]:
            return [None] * len(sizes) if x is None else torch.split(x, sizes, 1)

        parts = torch.split(output.prediction, sizes, 1), split(output.value), split(output.heads)
        return [Output(*part) for part in zip(*parts, strict=True)]

    def outputs(self, batch: Batch, module: nn.Module | None = None) -> Tensor:
        """Return the prediction (T, B, P): logits, or parameters of the action's distribution."""
        return self.forward(batch, module).prediction

    def outputs_with(self, batch: Batch, weights: Weights | None) -> Tensor:
        """Return `outputs` with other weights and buffers, by name, in place of the network's own.

        Names that are not in `weights` keep their own values. With None this is `outputs`.
        """
        if weights is None:
            return self.outputs(batch)
        with self._keeping_activations():
            return call_with(self.module, weights, lambda module: self.outputs(batch, module))

    @contextmanager
    def _keeping_activations(self) -> Iterator[None]:
        """Switch activation checkpointing off.

        It would recompute activations after the given weights have been taken out again.
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
        """Return copies of the network's buffers.

        Pass them to `outputs_with` or `loss` to leave the network's own statistics unchanged.
        """
        return {name: buffer.clone() for name, buffer in self.module.named_buffers()}

    def last_layer(self) -> nn.Linear:
        """Return the linear layer whose output is the prediction.

        Raises:
            ValueError: If the network has no linear layer.
        """
        linear = last_linear(self.module)
        if linear is None:
            raise ValueError("the network has no linear layer; use one that ends in a linear layer")
        return linear

    def features(self, batch: Batch) -> Tensor:
        """Return the last layer's input, (B, size) for examples of one step."""
        seen: list[Tensor] = []
        layer = self.last_layer()
        handle = layer.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
        try:
            self.outputs(batch)
        finally:
            handle.remove()
        return seen[0]

    def loss(self, batch: Batch, weights: Weights | None = None) -> Tensor:
        """Return the mean loss of the outputs against `batch.target`, a scalar.

        Args:
            batch: Examples with targets.
            weights: Weights and buffers, by name, that replace the network's own.
        """
        assert batch.target is not None, "a batch to learn from has targets"
        return self.loss_of(self.outputs_with(batch, weights), batch.target)

    @abstractmethod
    def loss_of(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss of `outputs` (T, B, P) against `target`, a scalar."""

    @abstractmethod
    def example_losses(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each example, (B,), summed over its steps."""

    def log_likelihood(self, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
        """Return log p(x | example), (B,), summed over an example's steps.

        Args:
            batch: Examples.
            generator: Generator to draw x from the model's distribution. With None, x is the label
                or action in the batch. Tokens without a tag in the batch get none. Of squashed
                actions x is the value before squashing, which keeps its precision; the gradient is
                the same.

        Raises:
            ValueError: Without a generator, for a batch that has neither labels nor actions.
        """
        p = self.outputs(batch)
        if generator is not None:
            likelihood = self.likelihood.latent
            x = likelihood.sample(p.detach(), generator)
            tagged = self.tagged(batch.target)
            if tagged is not None:
                x = x.where(tagged, -1)
        else:
            taken = self.observed(batch)
            if taken is None:
                raise ValueError(
                    "the batch holds neither labels nor actions; give one of them, or a generator"
                )
            likelihood, x = self.likelihood, taken
        return likelihood.log_prob(p, x).sum(0)

    def tagged(self, target: Tensor | None) -> Tensor | None:
        """Return which tokens have a tag, bool (T, B, L); None if the targets are not tags."""
        if target is None or not (self.labelled and isinstance(self.likelihood, TokenCategorical)):
            return None
        return target >= 0

    def mean_over_outputs(self, values: Tensor, target: Tensor | None) -> Tensor:
        """Return the mean of `values`; for tags, over the tokens that have one.

        Args:
            values: A number for each output, (T, B, P), or for each token, (T, B, L).
            target: The targets, which for tags are int64 (T, B, L).
        """
        tagged = self.tagged(target)
        if tagged is None:
            return values.mean()
        by_token = reduce(values, "t b (l c) -> t b l", "mean", l=tagged.shape[-1])
        return by_token.where(tagged, 0.0).sum() / tagged.sum().clamp(min=1)

    def mean_kl(self, p: Tensor, q: Tensor, target: Tensor | None) -> Tensor:
        """Return the mean of KL(p || q) in nats over steps; for tags, over tokens that have one.

        Args:
            p: Parameters of the likelihood, (T, B, P).
            q: Other parameters, (T, B, P).
            target: The targets, which for tags are int64 (T, B, L).
        """
        if self.tagged(target) is None:
            return self.likelihood.kl(p, q).mean()
        assert isinstance(self.likelihood, TokenCategorical)
        return self.mean_over_outputs(self.likelihood.token_kl(p, q), target)

    @abstractmethod
    def targets(self, batch: Batch) -> Tensor:
        """Return the target that a memory would store with `batch` now: labels or outputs."""

    @abstractmethod
    def observed(self, batch: Batch) -> Tensor | None:
        """Return the labels or the actions in `batch`, (T, B, ...)."""

    def weights(self) -> dict[str, nn.Parameter]:
        """Return the trainable parameters by name."""
        return {name: p for name, p in self.module.named_parameters() if p.requires_grad}

    def add_weights(self, weights: Sequence[nn.Parameter]) -> None:
        """Let the optimizer train these weights too; its state for the others is unchanged."""
        # Learning-rate schedules would not know a new parameter group.
        self.optimizer.param_groups[0]["params"].extend(weights)

    def frozen_copy(self) -> nn.Module:
        """Return a copy of the network that no optimizer will change."""
        return frozen_copy_of(self.module)

    @contextmanager
    def evaluating(self, gradients: bool = False) -> Iterator[None]:
        """Put the network in evaluation mode, for example without dropout.

        Args:
            gradients: True if gradients will be computed. cuDNN computes those of recurrent layers
                only in training mode, so a network with such layers then runs without cuDNN.
        """
        parts = [part for part in self.module.modules() if part.training]
        recurrent = any(isinstance(part, nn.RNNBase) for part in self.module.modules())
        for part in parts:
            part.training = False
        try:
            without_cudnn = torch.backends.cudnn.flags(enabled=False)
            with without_cudnn if gradients and recurrent else nullcontext():
                yield
        finally:
            for part in parts:
                part.training = True

    def augmented(self, batch: Batch) -> Batch:
        """Return `batch` with its images augmented, if the learner augments images."""
        return batch
