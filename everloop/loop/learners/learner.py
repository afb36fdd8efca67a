"""A learner owns a network and its optimizer. What both kinds share is here."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.func import functional_call

from everloop.contract import CUE, NetworkOutput, Observation, Output, World
from everloop.loop.batch import Batch, to_tensor
from everloop.loop.learners.update import Updater
from everloop.loop.likelihood import Likelihood
from everloop.loop.state import pack
from everloop.loop.strategies.base import Strategy, load_states, states_of
from everloop.loop.world import check_finite, play


class Learner(ABC):
    """Network, optimizer and the ways strategies look at them.

    module: called as `module(obs, state, start) -> (output, state)` with obs[m] (T, B, ...), state (B, H)
        and start bool (T, B); `module.initial_state(B)` gives the empty state. Layers inside see
        time and batch as one leading axis (t b).
    steps: world steps learned from so far.
    minibatch: what the loss at hand is computed on.
    sequence_length: how many steps an example has.
    on_log: called with {name: value} now and then, about training up to step `steps`.
    labelled: whether targets are labels that the world reveals.
    recalls_ahead: whether what strategies recall goes through the network together with the fresh batch, not after it.
    accumulate: batches whose gradients make one step.
    may_grow: whether the network may get new weights while it learns.
    notes: which of the options asked for do nothing here, and why.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer
    likelihood: Likelihood
    world: World
    updater: Updater
    strategies: Sequence[Strategy] = ()
    steps: int = 0
    minibatch: Batch | None = None
    sequence_length: int = 1
    on_log: Callable[[dict[str, float]], None] = staticmethod(lambda scalars: None)
    max_grad_norm: float | None = None
    labelled: bool = False
    recalls_ahead: bool = False
    accumulate: int = 1
    may_grow: bool = True
    notes: Sequence[str] = ()

    def loss(self, batch: Batch, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """The mean loss of the outputs against `batch.target`: a scalar without side effects.

        With `weights` by name as if they were the network's own.
        """
        assert batch.target is not None, "a batch that is learned from holds what should come out"
        return self.loss_of(self.outputs_with(batch, weights), batch.target)

    @abstractmethod
    def loss_of(self, outputs: Tensor, target: Tensor) -> Tensor:
        """`loss` of outputs that are there already."""

    @abstractmethod
    def targets(self, batch: Batch) -> Tensor:
        """What a memory should keep as `target` for `batch`, if it is stored now."""

    @abstractmethod
    def begin(self, tasks: Sequence[int], steps: int) -> None:
        """Begin a phase of `steps` world steps, or a few more to fill the last unit, divided among `tasks`."""

    @abstractmethod
    def advance(self) -> int:
        """Learn from one unit: a batch of a stream, or a rollout with its updates.

        Between two calls the learner is at rest: it may be evaluated, saved or changed.

        Returns:
            The world steps learned from; 0, and nothing is done, once the phase's steps are over.
        """

    def learn(self, tasks: Sequence[int], steps: int) -> None:
        """A whole phase: `begin`, and `advance` to its end."""
        self.begin(tasks, steps)
        while self.advance():
            pass

    def updates(self, steps: int) -> int | None:
        """How many optimizer steps a phase of `steps` world steps takes; None if that is not known in advance."""
        return None

    def seed(self, seed: int) -> None:
        """Seed what training draws from. A run begins with it."""
        torch.manual_seed(seed)

    def state_dict(self) -> dict[str, Any]:
        """All that `advance` depends on between two calls, but for the global generators of random numbers.

        Raises:
            ValueError: For a world that can't give its state.
        """
        return {"learned": self.learned(), "position": self.position()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave: this learner, made alike and with the same strategies attached, goes on as that one.

        Raises:
            ValueError: For the state of another network or of other strategies.
        """
        self.load_learned(state["learned"])
        self.load_position(state["position"])

    def learned(self) -> dict[str, Any]:
        """What learning changes: the network, the optimizer, and the strategies with what they store."""
        return {
            "strategies": states_of(self.strategies),
            "module": pack(dict(self.module.state_dict())),
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
        }

    def load_learned(self, state: Mapping[str, Any]) -> None:
        """Return to what `learned` gave, while the world and the count of steps stay where they are.

        Raises:
            ValueError: For the state of another network or of other strategies.
        """
        load_states(self.strategies, state["strategies"], self)  # first: the network gets the weights back that they had added
        load_weights(self.module, state["module"])
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))

    def position(self) -> dict[str, Any]:
        """Where the learner is in its phase and its world.

        Raises:
            ValueError: For a world that can't give its state.
        """
        world = self.world.state_dict()
        if world is None:
            raise ValueError(f"{type(self.world).__name__} can't give its state (state_dict is None), so the learner can't be saved here")
        return {"steps": self.steps, "world": world}

    def load_position(self, state: Mapping[str, Any]) -> None:
        """Take over what `position` gave."""
        self.steps = state["steps"]
        self.world.load_state_dict(state["world"])

    @property
    def told(self) -> bool:
        """Whether the world shows which task it is, as the modality "cue"."""
        space = self.world.single_observation_space
        return isinstance(space, spaces.Dict) and CUE in space.spaces

    def weights(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by name."""
        return {name: p for name, p in self.module.named_parameters() if p.requires_grad}

    def add_weights(self, weights: Sequence[nn.Parameter]) -> None:
        """Let the optimizer train these as well, in its first group; its state for all others stays."""
        self.optimizer.param_groups[0]["params"].extend(weights)  # a group of their own would be none that a schedule knows

    def check(self, strategies: Sequence[Strategy]) -> None:
        """Raise ValueError if one of `strategies` that are active cannot work here, or not beside the others."""
        before, self.strategies = self.strategies, [strategy for strategy in strategies if strategy.active]
        try:
            for strategy in self.strategies:
                strategy.check(self)
            _check_one("replace the plain loss", [s for s in self.strategies if s.replaces_loss])
            _check_one("add weights", [s for s in self.strategies if s.adds_weights])
        finally:
            self.strategies = before

    def attach(self, strategies: Sequence[Strategy]) -> None:
        """Let those of `strategies` that are active accompany every update from now on, in this order, in place of earlier ones.

        Raises:
            ValueError: If one of them cannot work here, or not beside the others; then all is as it was.
        """
        self.check(strategies)
        self.strategies = [strategy for strategy in strategies if strategy.active]
        if hasattr(self, "updater"):
            self.updater.detach()
        self.updater = Updater(self, self.strategies, self.max_grad_norm)

    def output_losses(self, batch: Batch, output: NetworkOutput) -> list[Tensor]:
        """What the strategies add to the loss of the fresh `batch`."""
        return [loss for s in self.strategies if (loss := s.output_loss(self, batch, output)) is not None]

    def recall(self) -> list[tuple[Strategy, Batch]]:
        """What the strategies rehearse with the coming update, each with its strategy."""
        return [(s, stored) for s in self.strategies if (stored := s.recall(self)) is not None]

    def augmented(self, batch: Batch) -> Batch:
        """`batch` as it is to be learned from: itself, unless the learner makes its images a little different each time."""
        return batch

    def gradient_norm(self) -> float | None:
        """The norm of the latest update's gradient, as the optimizer used it; None where there is none."""
        gradients = [p.grad for p in self.updater.parameters if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients)) if gradients else None

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.module.parameters()).device

    def forward(self, batch: Batch, module: nn.Module | None = None) -> NetworkOutput:
        """Outputs for `batch`, its memory empty at first; of `module` instead of the learner's if given."""
        return self.apply(module or self.module, batch.obs, self.initial_state(len(batch)), batch.start)[0]

    def forward_together(self, batches: Sequence[Batch]) -> list[NetworkOutput]:
        """Outputs for each of `batches`, of examples of the same length, from one forward pass."""
        output = self.forward(Batch.join(batches))
        sizes = [len(batch) for batch in batches]
        parts = [None if x is None else x.split(sizes, 1) for x in (output.prediction, output.value, getattr(output, "heads", None))]
        return [Output(*(None if x is None else x[i] for x in parts)) for i in range(len(batches))]  # type: ignore[arg-type]

    def initial_state(self, batch: int) -> Tensor:
        """The network's empty memory, for `batch` examples."""
        state: Tensor = self.module.initial_state(batch)  # type: ignore[operator]
        return state

    def apply(self, module: nn.Module, obs: Mapping[str, Tensor], state: Tensor, start: Tensor) -> tuple[NetworkOutput, Tensor]:
        """(output, state after it) of `module`; every forward pass goes through here."""
        result: tuple[NetworkOutput, Tensor] = module(obs, state, start)
        return result

    def outputs(self, batch: Batch, module: nn.Module | None = None) -> Tensor:
        """The prediction (T, B, P): logits, or the parameters of the action's distribution."""
        return self.forward(batch, module).prediction

    def last_layer(self) -> nn.Linear:
        """The linear layer that the prediction comes from. Raises ValueError where there is none."""
        linear = [layer for name, layer in self.module.named_modules() if isinstance(layer, nn.Linear) and not name.startswith("value")]
        if not linear:
            raise ValueError("the network has no linear layer, allowed where features are needed: one whose last layer is linear")
        return linear[-1]

    def features(self, batch: Batch) -> Tensor:
        """What the last layer sees, (B, size) for examples of one step."""
        seen: list[Tensor] = []
        handle = self.last_layer().register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
        try:
            self.outputs(batch)
        finally:
            handle.remove()
        return seen[0]

    def outputs_with(self, batch: Batch, weights: Mapping[str, Tensor] | None) -> Tensor:
        """`outputs` as they would be with these weights (and buffers), by name, in place of the network's own, if they are given."""
        if weights is None:
            return self.outputs(batch)

        def module(*args: Any, **kwargs: Any) -> Any:
            return functional_call(self.module, dict(weights), args, kwargs)

        with self._keeping_activations():
            return self.apply(module, batch.obs, self.initial_state(len(batch)), batch.start)[0].prediction  # type: ignore[arg-type]

    def buffers_aside(self) -> dict[str, Tensor]:
        """Copies of the network's buffers; given to `outputs_with` or `loss`, the statistics of the network itself stay as they are."""
        return {name: buffer.clone() for name, buffer in self.module.named_buffers()}

    @contextmanager
    def _keeping_activations(self) -> Iterator[None]:
        """Without checkpointing, which would compute them again when the weights are no longer those that were given."""
        parts = [part for part in self.module.modules() if getattr(part, "checkpointing", False)]
        for part in parts:
            part.checkpointing = False  # type: ignore[assignment]
        try:
            yield
        finally:
            for part in parts:
                part.checkpointing = True  # type: ignore[assignment]

    def log_likelihood(self, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
        """log p(x | example), (B,), summed over an example's steps.

        With a generator x is drawn from the model itself, else it is the label or action in the batch.
        """
        p = self.outputs(batch)
        if generator is not None:
            x = self.likelihood.sample(p.detach(), generator)
        else:
            taken = self.observed(batch)
            if taken is None:
                raise ValueError("the batch holds neither labels nor actions, allowed: one of them, or a generator")
            x = taken
        return self.likelihood.log_prob(p, x).sum(0)

    @abstractmethod
    def observed(self, batch: Batch) -> Tensor | None:
        """What the world said (labels) or the agent did (actions) in `batch`, (T, B, ...)."""

    def frozen_copy(self) -> nn.Module:
        """A copy of the network that no optimizer will ever change."""
        return copy.deepcopy(self.module).eval().requires_grad_(False)

    @contextmanager
    def judging(self) -> Iterator[None]:
        """The network as it is judged: without what is random in training, such as dropout."""
        # cuDNN goes back through a recurrent layer only in training
        parts = [part for part in self.module.modules() if part.training and not isinstance(part, nn.RNNBase)]
        for part in parts:
            part.training = False
        try:
            yield
        finally:
            for part in parts:
                part.training = True

    @torch.no_grad()
    def act(
        self, obs: Observation, state: Tensor, start: npt.NDArray[np.bool_], generator: torch.Generator | None = None
    ) -> tuple[npt.NDArray[Any], Tensor]:
        """Actions (B, ...) for one step and the state after it: the mode, or a draw if there is a generator."""
        tensors = {name: to_tensor(value, self.device)[None] for name, value in obs.items()}
        output, state = self.apply(self.module, tensors, state, to_tensor(start, self.device)[None])
        p = output.prediction[0]
        action = self.likelihood.mode(p) if generator is None else self.likelihood.sample(p, generator)
        return self.clip(action.cpu().numpy()), state

    def clip(self, action: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """`action` within the world's limits."""
        space = self.world.single_action_space
        return np.clip(action, space.low, space.high) if isinstance(space, spaces.Box) else action

    def rollout(self, world: World, tasks: Sequence[int], steps: int, seed: int) -> Batch:
        """Act for `steps` steps (a multiple of the sequence length) in `world`: examples of the agent's own experience.

        Actions are drawn from the policy with a generator of its own, so that nothing else that is random notices.
        """
        with self.judging():
            return self._rollout(world, tasks, steps, seed)

    def _rollout(self, world: World, tasks: Sequence[int], steps: int, seed: int) -> Batch:
        generator = torch.Generator(self.device).manual_seed(seed)
        obs, played = play(world, tasks, seed)
        state = self.initial_state(world.num_envs)
        start = np.ones(world.num_envs, dtype=np.bool_)
        seen: list[Observation] = []
        rows: list[tuple[Any, Any, Any]] = []
        for _ in range(steps):
            check_finite(obs, self.steps)
            action, state = self.act(obs, state, start, generator)
            seen.append(obs)
            obs, _, terminated, truncated, info = world.step(action)
            rows.append((start, action, info.get("label")))
            start = terminated | truncated
        starts, actions, labels = zip(*rows, strict=True)
        return Batch(
            {name: to_tensor(np.stack([o[name] for o in seen]), self.device) for name in obs},
            to_tensor(np.stack(starts), self.device),
            None if labels[0] is None else to_tensor(np.stack(labels).astype(np.int64), self.device),
            to_tensor(np.stack(actions), self.device),
            to_tensor(played, self.device),
        ).sequences(self.sequence_length)


def load_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give `module` these weights and buffers. Raises ValueError if it has others; nothing has changed then."""
    shapes, given = ({name: value.shape for name, value in held.items()} for held in (module.state_dict(), weights))
    wrong = sorted(name for name in shapes.keys() | given.keys() if shapes.get(name) != given.get(name))
    if wrong:
        raise ValueError(f"the state is of another network: {', '.join(wrong[:3])} differ{'s' if len(wrong) == 1 else ''}")
    module.load_state_dict(weights)


def _check_one(what: str, strategies: Sequence[Strategy]) -> None:
    """Raise ValueError if there are several that do `what`."""
    if len(strategies) > 1:
        raise ValueError(f"{' and '.join(type(s).__name__ for s in strategies)} each {what}, allowed: one of them")
