"""Small networks, worlds and learners that tests of the loop share."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector.utils import batch_space
from sb3_contrib import RecurrentPPO
from stable_baselines3 import PPO
from torch import Tensor, nn

from everloop.agents import Agent
from everloop.contract import Output
from everloop.envs import ImageStreamVectorEnv, PlantVectorEnv, TaskVectorWrapper, VectorFeedback
from everloop.envs.data import from_arrays
from everloop.loop import (
    Batch,
    Categorical,
    DQNLearner,
    Forward,
    Learner,
    Result,
    SACLearner,
    Strategy,
    SupervisedLearner,
    Training,
    likelihood_for,
)
from everloop.loop.sb3.off_policy import OffPolicyLearner
from everloop.loop.sb3.on_policy import SB3Learner

PPO_PARAMETERS: dict[str, Any] = {
    "n_steps": 8,
    "batch_size": 16,
    "n_epochs": 2,
    "learning_rate": 1e-2,
    "gamma": 0.9,
    "ent_coef": 0.5,
}
REPLAYED: dict[str, Any] = {
    "learning_rate": 1e-2,
    "buffer_size": 400,
    "learning_starts": 15,
    "batch_size": 16,
    "gamma": 0.8,
}
DQN_PARAMETERS: dict[str, Any] = REPLAYED | {
    "train_freq": 2,
    "target_update_interval": 16,
    "exploration_fraction": 0.5,
}
SAC_PARAMETERS: dict[str, Any] = REPLAYED | {"train_freq": 2}


class FlatNet(nn.Module):
    """Applies `layers` to one modality, with the leading axes (t b) that learners use."""

    def __init__(self, layers: nn.Module, key: str = "image") -> None:
        super().__init__()
        self.layers, self.key = layers, key

    def initial_state(self, batch: int) -> Tensor:
        return torch.zeros(batch, 1)

    def forward(
        self, obs: dict[str, Tensor], state: Tensor, start: Tensor
    ) -> tuple[Output, Tensor]:
        T, B = start.shape
        x = obs[self.key].to(next(self.parameters()).dtype)
        x = x / 255.0 if obs[self.key].dtype == torch.uint8 else x
        rows: Tensor = self.layers(x.reshape(T * B, *x.shape[2:]))
        return Output(rows.reshape(T, B, -1), None), state


def mlp(outputs: int = 10, inputs: int = 64, hidden: int = 6, seed: int = 0) -> FlatNet:
    """Two layers on flattened images, in double precision."""
    torch.manual_seed(seed)
    return FlatNet(
        nn.Sequential(
            nn.Flatten(), nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs)
        )
    ).double()


def digit_learner(
    optimizer: Callable[[Any], torch.optim.Optimizer] | None = None, balanced: bool = False
) -> SupervisedLearner:
    """Two layers on digits, in double precision; the default optimizer is SGD."""
    module = mlp()
    parameters = module.parameters()
    chosen = optimizer(parameters) if optimizer else torch.optim.SGD(parameters, lr=0.05)
    learner = SupervisedLearner(module, stream(), Training(balanced=balanced), chosen)
    if learner.counts is not None:
        learner.counts = learner.counts.double()
    return learner


class ConstantLogits(nn.Module):
    """The same logits for every input."""

    def __init__(self, logits: Sequence[float]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.expand(len(x), -1)


class FixedLearner(SupervisedLearner):
    """A supervised learner without a world, for hand-made batches."""

    def __init__(
        self, module: nn.Module, likelihood: Any, optimizer: torch.optim.Optimizer | None = None
    ) -> None:
        self.module, self.likelihood = module, likelihood
        self.optimizer = optimizer or torch.optim.SGD(module.parameters(), lr=0.1)
        self.attach([])


class LateReplay(SupervisedLearner):
    """Replays after the batch has been stored, as learners in control and attached loops do."""

    def _look(self, seen: Batch) -> Any:
        return self.forward(seen), []

    def _update(
        self, batch: Batch, target: Tensor, output: Any, replayed: Any, parts: int
    ) -> float:
        batch = replace(batch, target=target, output=output.prediction.detach())
        loss = self.loss_of(output.prediction, target)
        loss = self.updater.total_loss(loss, Forward(batch, output), [])
        self.rate.next()
        return foreign_step(self, loss, batch)


def learn_tasks(learner: Learner, tasks: Sequence[int], steps: int = 64, world: Any = None) -> None:
    """Learn `tasks` one after the other, like a run, with the attached strategies.

    A task ends with a rollout of 8 steps in `world`, or with no examples if there is none.
    """
    for k in tasks:
        task = learner.world.tasks[k]
        for strategy in learner.strategies:
            strategy.begin_task(task, learner)
        learner.learn([k], steps)
        batches = [] if world is None else [learner.rollout(world, [k], 8, seed=k)]
        for strategy in learner.strategies:
            strategy.end_task(task, batches, learner)


def update(learner: Learner, batch: Batch) -> float:
    """One update of a supervised learner on `batch`; returns the loss."""
    assert batch.target is not None
    recalled = learner.updater.recall()
    replayed = [(strategy, Forward(b, learner.forward(b))) for strategy, b in recalled]
    output = learner.forward(batch)
    loss = learner.loss_of(output.prediction, batch.target)
    batch = replace(batch, output=output.prediction.detach())
    loss = learner.updater.total_loss(loss, Forward(batch, output), replayed)
    return learner.updater.step(loss, batch)


def foreign_step(learner: Learner, loss: Tensor, batch: Batch) -> float:
    """A step on `loss` as a hand-written loop takes it; returns the loss."""
    learner.updater.expect(batch)
    learner.optimizer.zero_grad()
    if not loss.requires_grad:  # its gradient is 0
        loss = loss + 0 * torch.stack([p.sum() for p in learner.module.parameters()]).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    learner.optimizer.step()
    return loss.item()


def vector_batch(
    examples: int,
    size: int,
    classes: int,
    length: int = 1,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Batch:
    """Random normal vectors "x" with random labels; every example starts an episode."""
    g = torch.Generator().manual_seed(seed)
    start = torch.zeros(length, examples, dtype=torch.bool)
    start[0] = True
    x = torch.randn(length, examples, size, generator=g, dtype=dtype)
    return Batch({"x": x}, start, torch.randint(classes, (length, examples), generator=g))


def vector_learner(layers: nn.Module, classes: int) -> FixedLearner:
    return FixedLearner(FlatNet(layers, "x").double(), Categorical(classes))


def stream(num_envs: int = 8, seed: int = 0, **parameters: Any) -> ImageStreamVectorEnv:
    """scikit-learn's digits, seeded."""
    world = ImageStreamVectorEnv(num_envs, **parameters)
    world.reset(seed=seed)
    return world


def plant(num_envs: int = 4, horizon: int = 5, **parameters: Any) -> Any:
    """A small plant with feedback; episodes end inside every rollout of PPO_PARAMETERS."""
    parameters = {
        "num_tasks": 3,
        "observation_dim": 3,
        "latent_dim": 2,
        "action_dim": 2,
    } | parameters
    return VectorFeedback(PlantVectorEnv(num_envs, horizon=horizon, **parameters))


def agent(observation_space: Any, action_space: spaces.Space[Any], **parameters: Any) -> Agent:
    """A tiny actor-critic."""
    parameters = {
        "value_head": True,
        "recurrent": False,
        "token_size": 8,
        "attention_heads": 2,
        "hidden_size": 6,
    } | parameters
    return Agent(observation_space, likelihood_for(action_space).size(), **parameters)


def recurrent_agent(observation_space: Any, action_space: spaces.Space[Any]) -> Agent:
    return agent(observation_space, action_space, recurrent=True)


def control_learner(
    recurrent: bool = False,
    world: Any = None,
    parameters: dict[str, Any] | None = None,
    **kwargs: Any,
) -> SB3Learner:
    """PPO or RecurrentPPO on a small plant."""
    return SB3Learner(
        plant() if world is None else world,
        recurrent_agent if recurrent else agent,
        RecurrentPPO if recurrent else PPO,
        PPO_PARAMETERS | (parameters or {}),
        device="cpu",
        **({"sequence_length": 4 if recurrent else 1} | kwargs),
    )


class Dial(TaskVectorWrapper):
    """A world of discrete actions; each sets one control to -1 or 1, or none."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        controls = env.single_action_space.shape[0]
        self.settings = np.concatenate(
            [np.eye(controls), -np.eye(controls), np.zeros((1, controls))]
        ).astype(np.float32)
        self.single_action_space = spaces.Discrete(len(self.settings))
        self.action_space = batch_space(self.single_action_space, env.num_envs)

    def step(self, actions: Any) -> Any:
        return self.env.step(self.settings[actions])


class ConcatNet(nn.Module):
    """Two layers on the concatenation of all modalities."""

    def __init__(self, space: Any, outputs: int, hidden: int = 8) -> None:
        super().__init__()
        self.names = sorted(space.spaces)
        inputs = sum(int(np.prod(space[name].shape)) for name in self.names)
        self.layers = nn.Sequential(
            nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs)
        )

    def initial_state(self, batch: int) -> Tensor:
        return torch.zeros(batch, 1)

    def forward(self, obs: Any, state: Tensor, start: Tensor) -> tuple[Output, Tensor]:
        x = torch.cat([obs[name].flatten(2) for name in self.names], -1).flatten(0, 1)
        return Output(self.layers(x).unflatten(0, start.shape), None), state


def actor_net(observation_space: Any, action_space: spaces.Space[Any]) -> ConcatNet:
    return ConcatNet(observation_space, likelihood_for(action_space).size())


def critic_net(observation_space: Any) -> ConcatNet:
    return ConcatNet(observation_space, 1)


def dial_plant(num_envs: int = 4, horizon: int = 5, **parameters: Any) -> Any:
    """A small plant with five discrete actions, and feedback."""
    parameters = {
        "num_tasks": 3,
        "observation_dim": 3,
        "latent_dim": 2,
        "action_dim": 2,
    } | parameters
    return VectorFeedback(Dial(PlantVectorEnv(num_envs, horizon=horizon, **parameters)))


def off_policy_world(sac: bool, num_envs: int = 4, **parameters: Any) -> Any:
    return (plant if sac else dial_plant)(num_envs, **parameters)


def off_policy_learner(
    sac: bool = False, world: Any = None, parameters: dict[str, Any] | None = None, **kwargs: Any
) -> OffPolicyLearner:
    """DQN or SAC on a small plant."""
    world = off_policy_world(sac) if world is None else world
    if sac:
        return SACLearner(
            world,
            actor_net,
            critic_net,
            SAC_PARAMETERS | (parameters or {}),
            **{"device": "cpu"} | kwargs,
        )
    return DQNLearner(
        world, actor_net, DQN_PARAMETERS | (parameters or {}), **{"device": "cpu"} | kwargs
    )


def weights(module: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def perturb(module: nn.Module, seed: int, size: float = 0.5) -> None:
    """Add normal noise of standard deviation `size` to the weights."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p += size * torch.randn(p.shape, generator=g, dtype=p.dtype)


def gradients(loss: Tensor | None, module: nn.Module) -> list[Tensor]:
    """d loss / d weights, 0 where there is none."""
    assert loss is not None
    parameters = list(module.parameters())
    found = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def same(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    """Equal to the last bit."""
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def distance(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """The largest difference of two lists of tensors."""
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))


def random_states() -> tuple[Any, ...]:
    """The state of every global generator."""
    return torch.get_rng_state().tolist(), copy.deepcopy(np.random.get_state()[1].tolist())  # noqa: NPY002


def run_of(result: Result, step: int = 0, phase: int = 0, total: int = 100) -> Any:
    """The attributes of a run that callbacks read, for a hand-made result."""
    tasks = [SimpleNamespace(id=j, name=result.tasks[j]) for j in result.phases[phase]]
    plan = SimpleNamespace(phases=result.phases, steps=[total])
    return SimpleNamespace(result=result, steps=step, phase=phase, tasks=tasks, plan=plan)


def keyword_grid(**values: Sequence[Any]) -> list[dict[str, Any]]:
    """One dict for each value: {name: value}."""
    return [{name: value} for name, options in values.items() for value in options]


def rehearsal_loss(strategy: Strategy, learner: Learner) -> Tensor | None:
    """The loss of the examples that `strategy` replays now; None if there are none."""
    stored = strategy.recall(learner)
    if stored is None:
        return None
    return strategy.loss(None, Forward(stored, learner.forward(stored)), learner)


def image_stream(height: int, width: int, channels: int) -> ImageStreamVectorEnv:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (24, height, width, channels), dtype=np.uint8)
    labels = np.arange(24) % 4
    return ImageStreamVectorEnv(
        4, from_arrays(images, labels, images, labels, channels="last"), episode_length=5
    )
