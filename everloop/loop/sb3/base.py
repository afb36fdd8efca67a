"""The base class of learners around the algorithms of Stable-Baselines3 (SB3)."""

from __future__ import annotations

import copy
import math
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.noise import VectorizedActionNoise
from torch import Tensor, nn

from everloop.contract import Output, World
from everloop.loop.batch import Batch
from everloop.loop.learners.learner import Learner
from everloop.loop.learners.reset import check_state, reset_state
from everloop.loop.learners.shown import Recent
from everloop.loop.learners.update import too_high
from everloop.loop.sb3.callback_state import load_states, states_of
from everloop.loop.sb3.control import Control
from everloop.loop.sb3.vec_env import WorldVecEnv, pictures
from everloop.loop.state import pack, packed, restore
from everloop.loop.strategies.base import Forward
from everloop.loop.world import Diverged

NetworkFactory = Callable[[spaces.Dict, spaces.Space[Any]], nn.Module]
OptimizerFactory = Callable[..., torch.optim.Optimizer]
Observations = Mapping[str, Tensor]
Callbacks = BaseCallback | Callable[..., bool] | list[BaseCallback] | None
"""What SB3's `learn` takes as `callback`."""

COUNTERS = (
    "num_timesteps",
    "_total_timesteps",
    "_num_timesteps_at_start",
    "_episode_num",
    "_n_updates",
    "_current_progress_remaining",
    "_last_obs",
    "_last_episode_starts",
    "exploration_rate",
    "_n_calls",
)
"""Attributes that hold the position of SB3's algorithms between two rollouts."""

EPISODES = ("ep_info_buffer", "ep_success_buffer")
"""Attributes of SB3's algorithms that hold statistics of the latest episodes."""

RESERVED = {"max_grad_norm", "policy_kwargs", "use_sde", "seed", "device"}
"""Arguments of SB3's algorithms that the learner sets."""


def check_algorithm(algorithm: type[Any], known: tuple[type[Any], ...]) -> None:
    """Raise ValueError, in one line, if `algorithm` is none of the `known` ones or a subclass."""
    if not issubclass(algorithm, known):
        names = " or ".join(each.__name__ for each in known)
        raise ValueError(f"algorithm is {algorithm.__name__}; choose {names}, or a subclass")


def optimizer_arguments(optimizer: OptimizerFactory | None, **adam: Any) -> dict[str, Any]:
    """Return the policy's arguments for its optimizer.

    Args:
        optimizer: Function from the parameters and `lr` to the optimizer; None for torch's Adam.
        adam: More arguments of Adam, used only if `optimizer` is None.
    """
    if optimizer is None:
        return {"optimizer_kwargs": {"fused": True, **adam}}
    return {"optimizer_class": optimizer}


def as_world(obs: Observations, space: spaces.Space[Any]) -> dict[str, Tensor]:
    """Return SB3's observations in the world's format.

    `WorldVecEnv` gives images one more axis, which is removed here.

    Args:
        obs: Observations from SB3, by modality.
        space: The world's observation space.
    """
    names = pictures(space)
    return {name: x.squeeze(-4) if name in names else x for name, x in obs.items()}


@torch.no_grad()
def has_memory(network: nn.Module, space: spaces.Space[Any]) -> bool:
    """Return whether a network has a memory: whether a step changes its state.

    Args:
        network: A network as learners take it. One without memory returns its state unchanged.
        space: The Dict space of its observations, of which a random one is tried.
    """
    assert isinstance(space, spaces.Dict), "networks see Dict observations"
    device = next(network.parameters()).device
    rng = np.random.default_rng(0)
    obs = {
        name: torch.as_tensor(_near_zero(part, rng), device=device)[None, None]
        for name, part in space.spaces.items()
    }
    state = network.initial_state(1)  # type: ignore[operator]
    training = network.training
    network.eval()
    try:
        _, after = network(obs, state, torch.ones(1, 1, dtype=torch.bool, device=device))
    finally:
        network.train(training)
    return not torch.equal(after, state)


def _near_zero(space: Any, rng: np.random.Generator) -> npt.NDArray[Any]:
    """Return a random element of a Box, with values of about 1 if its bounds allow them."""
    element: npt.NDArray[Any] = np.clip(rng.normal(size=space.shape), space.low, space.high)
    return element.astype(space.dtype)


class Scalars(KVWriter):
    """Passes SB3's training log to `learner.on_log`, with the gradient norm.

    Raises:
        Diverged: If a logged loss is above the learner's `max_loss`.
    """

    def __init__(self, learner: Learner) -> None:
        self.learner = learner

    def write(self, key_values: dict[str, Any], key_excluded: Any, step: int = 0) -> None:
        numbers = {
            k: float(v) for k, v in key_values.items() if isinstance(v, (int, float, np.number))
        }
        norm = self.learner.gradient_norm()
        if norm is not None:
            numbers["train/gradient_norm"] = norm
        self.learner.on_log({k: v for k, v in numbers.items() if math.isfinite(v)})
        for name, value in numbers.items():
            loss = name.startswith("train/") and name.endswith("loss")
            if loss and value > self.learner.max_loss:
                raise Diverged(too_high(name, value, self.learner))

    def close(self) -> None: ...


class _Join(torch.autograd.Function):
    """The identity of x, whose backward pass also sends given gradients to other tensors.

    The arguments after x are pairs of a tensor and the gradient to add to it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, *pairs: Tensor) -> Tensor:
        ctx.save_for_backward(*pairs[1::2])
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, own: Tensor) -> Any:
        return own, *(x for gradient in ctx.saved_tensors for x in (gradient, None))


class SB3Base(Control, Learner):
    """A network that an algorithm of SB3 trains. The algorithm owns the loop over updates.

    Attributes:
        env: The world as a `VecEnv` of SB3.
        model: The algorithm.
        policy: The algorithm's policy, which contains its networks.

    Args:
        world: A world for reinforcement learning.
        parameters: Keyword arguments of the algorithm.
        max_grad_norm: Norm to which the gradient is clipped after the strategies, above 0.
        reset_optimizer: Forget the state of all optimizers, such as Adam's moments, when the tasks
            change, as in Continual World (Wolczyk et al. 2021).

    Raises:
        ValueError: If `parameters` contains an argument that the learner sets.
    """

    model: Any
    policy: Any

    def __init__(
        self,
        world: World,
        parameters: Mapping[str, Any] | None,
        max_grad_norm: float,
        reset_optimizer: bool,
    ) -> None:
        for name in sorted(RESERVED & set(parameters or {})):
            raise ValueError(
                f"parameters contain {name!r}, which the learner sets itself; leave it out"
            )
        self.world, self.max_grad_norm = world, max_grad_norm
        self.reset_optimizer = reset_optimizer
        self.env = WorldVecEnv(world, self.tally)
        self.shown = Recent()

    def _adopt(
        self,
        model: Any,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        callback: Callbacks = None,
    ) -> None:
        """Use the algorithm `model`, of which strategies see `module` and its `optimizer`."""
        self.model, self.policy = model, model.policy
        self.module, self.optimizer = module, optimizer
        if self.reset_optimizer:
            self.notes = [*self.notes, *check_state(optimizer)]
        model.set_logger(Logger(None, [Scalars(self)]))
        schedule = model.lr_schedule
        model.lr_schedule = lambda left: schedule(left) * self.rate_factor
        self._total, self._callback = 0, model._init_callback(callback)
        self._stopped = False  # True if a callback has stopped the present phase
        self._started = False  # True once the callback knows that training has started
        self.attach([])

    def _join_losses(
        self, batch: Batch, prediction: Tensor, heads: Tensor | None, expected: Batch
    ) -> Tensor:
        """Add the gradients of the strategies' losses of `batch` to the algorithm's own.

        Args:
            batch: The examples of the algorithm's loss.
            prediction: The network's prediction for them, (b, P).
            heads: The outputs of all tasks' heads, (b, K, P); None without heads per task.
            expected: The batch that strategies receive in the hooks of the next optimizer step.

        Returns:
            A tensor equal to `prediction`, which the algorithm must use instead.
        """
        self.updater.expect(expected)
        outputs = [prediction] if heads is None else [prediction, heads]
        leaves = [x.detach()[None].requires_grad_() for x in outputs]
        output = Output(leaves[0], heads=None if heads is None else leaves[1])
        found = self.updater.fresh_gradients(Forward(batch, output), leaves)
        if found is None:
            return prediction
        pairs = [(x, g[0]) for x, g in zip(outputs, found.outputs, strict=True) if g is not None]
        pairs += found.weights
        joined: Tensor = _Join.apply(prediction, *(x for pair in pairs for x in pair))  # type: ignore[no-untyped-call]
        return joined

    def seed(self, seed: int) -> None:
        """Seed torch, numpy, random actions and the world's next reset."""
        self.model.set_random_seed(seed)

    def begin(self, tasks: Sequence[int], steps: int) -> None:
        if self._begin_phase(tasks):
            self._reset()
        self.env.tasks, self.env.steps = tasks, self.steps
        self.env.reset_seed = self.reset_seed
        # SB3 resets the world and its schedules here.
        self._total, _ = self.model._setup_learn(steps, self._callback)
        self._stopped = False
        self._start_callback()

    def reset_world(self) -> None:
        self.env.steps, self.env.reset_seed = self.steps, self.reset_seed
        self.model._last_obs = self.env.reset()
        self.model._last_episode_starts = np.ones(self.env.num_envs, dtype=np.bool_)

    def _start_callback(self) -> None:
        self._started = True
        self._callback.on_training_start(locals(), globals())

    def advance(self) -> int:
        if not self._started:
            self._start_callback()  # the phase began in another process
        before = self.model.num_timesteps
        if self._stopped or before >= self._total:
            return 0
        collected = self._collect()
        steps: int = self.model.num_timesteps - before
        if collected is None:
            self._stopped = True
        else:
            self.shown.add(collected, {})
            self._see(collected)
            for strategy in self.strategies:
                strategy.observe(collected, self)
            self._train(steps)
        self.steps += steps
        self._report()
        if self._stopped or self.model.num_timesteps >= self._total:
            self._callback.on_training_end()
        return steps

    def _reset(self) -> None:
        """Reset what should not carry over to other tasks."""
        if self.reset_optimizer:
            for optimizer in (self.optimizer, *self._optimizers().values()):
                reset_state(optimizer)

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Return SB3's optimizers by name, except the one that strategies are attached to."""
        return {}

    @property
    def networks(self) -> nn.Module:
        """SB3's policy: the network that strategies see, and critics and target networks."""
        policy: nn.Module = self.policy
        return policy

    def learned(self) -> dict[str, Any]:
        others = {
            name: copy.deepcopy(optimizer.state_dict())
            for name, optimizer in self._optimizers().items()
        }
        return {**super().learned(), "optimizers": others}

    def load_learned(self, state: Mapping[str, Any]) -> None:
        super().load_learned(state)
        for name, optimizer in self._optimizers().items():
            optimizer.load_state_dict(copy.deepcopy(state["optimizers"][name]))

    def position(self) -> dict[str, Any]:
        counters = packed(self.model, [name for name in COUNTERS if hasattr(self.model, name)])
        episodes = {name: list(getattr(self.model, name) or []) for name in EPISODES}
        actions = self.model.action_space.np_random.bit_generator.state
        own = {
            "total": self._total,
            "stopped": self._stopped,
            "counters": counters,
            "episodes": episodes,
            "actions": actions,
            "env": self.env.state_dict(),
            "callbacks": states_of(self._callback),
            "noise": [pack(part.noise_prev) for part in self._noise()],
        }
        return {**super().position(), **own}

    def load_position(self, state: Mapping[str, Any]) -> None:
        super().load_position(state)
        self._total, self._stopped = state["total"], state["stopped"]
        restore(self.model, state["counters"])
        for name, value in state["episodes"].items():
            setattr(self.model, name, deque(value, maxlen=self.model._stats_window_size))
        self.model.action_space.np_random.bit_generator.state = state["actions"]
        self.model.start_time = time.time_ns()
        self.model.set_logger(Logger(None, [Scalars(self)]))  # without what was not logged yet
        self.env.load_state_dict(state["env"])
        load_states(self._callback, state["callbacks"])
        if len(state["noise"]) > len(self._noise()):  # SB3 makes one for each copy when it learns
            model = self.model
            model.action_noise = VectorizedActionNoise(model.action_noise, self.env.num_envs)
        if len(state["noise"]) < len(self._noise()):  # the run goes back to before it learned
            self.model.action_noise = self.model.action_noise.base_noise
        for noise, saved in zip(self._noise(), state["noise"], strict=True):
            noise.noise_prev = pack(saved)

    def _noise(self) -> list[Any]:
        """Return the parts of the action noise that remember their last value."""
        noise = getattr(self.model, "action_noise", None)
        return [part for part in getattr(noise, "noises", [noise]) if hasattr(part, "noise_prev")]

    @abstractmethod
    def _collect(self) -> Batch | None:
        """Act for one rollout. Return its experience, each example once.

        None if a callback of SB3 has stopped training.
        """

    @abstractmethod
    def _train(self, steps: int) -> None:
        """Perform SB3's updates after a rollout of `steps` world steps."""

    @abstractmethod
    def _report(self) -> None:
        """Let SB3 log if it is time to."""
