"""PackNet, LoRA and progressive networks preserve the outputs of old tasks bit for bit."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from architecture_helpers import (
    check_view_leaves_no_trace,
    examples,
    learn_four_tasks,
    learn_task,
    task_aware_learner,
    view_outputs,
)
from loop_helpers import PPO_PARAMETERS, agent, plant, same
from stable_baselines3 import PPO
from strategy_helpers import Named, make_learner, one_layer
from torch import Tensor, nn

from everloop.agents import MLP, Agent, ConvNet5, ProgressiveMLP
from everloop.loop import (
    HAT,
    LoRA,
    PackNet,
    Progressive,
    SB3Learner,
    ShrinkAndPerturb,
    Strategy,
)
from everloop.loop.strategies.parts.per_task import PerTask


class Normed(nn.Module):
    """Linear layers with a batch norm, whose statistics change with every task."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 12
        self.layers = nn.Sequential(
            nn.Linear(64, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        rows: Tensor = self.layers(x.flatten(1).float() / 255)
        return rows


PRESERVING: dict[str, tuple[Callable[[], Strategy], Callable[[], nn.Module]]] = {
    "packnet": (lambda: PackNet(retrain_steps=10), lambda: MLP((8, 8, 1), (16, 16))),
    "packnet, batch norm": (lambda: PackNet(retrain_steps=10), Normed),
    "packnet, convolutions": (
        lambda: PackNet(retrain_steps=2),
        lambda: ConvNet5((8, 8, 1), (12, 12)),
    ),
    "lora": (lambda: LoRA(rank=2), lambda: MLP((8, 8, 1), (16, 16))),
    "lora, pre-trained": (lambda: LoRA(rank=2, train_base=False), lambda: MLP((8, 8, 1), (16, 16))),
    "progressive": (Progressive, lambda: ProgressiveMLP((8, 8, 1), (16, 16))),
}


@pytest.mark.parametrize("name", PRESERVING)
def test_old_tasks_are_bit_equal_in_their_views_after_later_tasks(name: str) -> None:
    strategy, backbone = PRESERVING[name][0](), PRESERVING[name][1]()
    learner = task_aware_learner(backbone)
    then, now, bare = learn_four_tasks(learner, strategy)
    assert same(then, now)
    assert not torch.equal(bare, then[0])  # without the view the network has changed


@pytest.mark.parametrize("name", PRESERVING)
def test_a_view_leaves_no_trace(name: str) -> None:
    strategy, backbone = PRESERVING[name][0](), PRESERVING[name][1]()
    learner = task_aware_learner(backbone)
    learner.attach([strategy])
    for task in range(2):
        learn_task(learner, task, 32)
    check_view_leaves_no_trace(learner, strategy)


@pytest.mark.parametrize("name", PRESERVING)
def test_later_tasks_can_still_be_learned(name: str) -> None:
    strategy, backbone = PRESERVING[name][0](), PRESERVING[name][1]()
    learner = task_aware_learner(backbone, rate=1e-2)
    learner.attach([strategy])
    learn_task(learner, 0)
    strategy.begin_task(learner.world.tasks[1], learner)
    batch = examples(learner, 1, seed=3)
    before = float(learner.loss(batch).detach())
    learner.learn([1], 1600)
    assert float(learner.loss(batch).detach()) < 0.8 * before


@pytest.mark.parametrize(("freezer", "network"), [(LoRA, MLP), (Progressive, ProgressiveMLP)])
@pytest.mark.parametrize("divider", [PackNet, HAT])
def test_they_are_refused_beside_strategies_that_divide_the_weights(
    freezer: Any, network: Any, divider: Any
) -> None:
    with pytest.raises(
        ValueError,
        match=f"^{divider.name} divides the weights among tasks and {freezer.name} freezes weights",
    ):
        task_aware_learner(network((8, 8, 1), (16, 16))).attach([divider(), freezer()])


class Columns(nn.Module):
    """A progressive network as an agent's encoder."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.net, self.size = ProgressiveMLP((inputs,), (8, 8)), 8

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.net(x * 255)
        return features


@pytest.mark.parametrize("kind", [LoRA, Progressive])
def test_in_control_the_value_head_keeps_learning(kind: type[Strategy]) -> None:
    def network(space: Any, action_space: Any) -> Agent:
        first = next(name for name in space.spaces if name != "cue")
        return agent(
            space,
            action_space,
            head_per_task=True,
            encoders={first: Columns(math.prod(space[first].shape))},
        )

    learner = SB3Learner(plant(task_cue=True), network, PPO, PPO_PARAMETERS, device="cpu")
    strategy = kind()
    learner.attach([strategy])
    for task in (0, 1):
        strategy.begin_task(learner.world.tasks[task], learner)
        before = {name: p.detach().clone() for name, p in learner.module.named_parameters()}
        learner.learn([task], 64)
        strategy.end_task(learner.world.tasks[task], [], learner)
    changed = [
        name for name, p in learner.module.named_parameters() if not torch.equal(p, before[name])
    ]
    assert {name for name in changed if name.startswith("value")} == {
        "value.linear.weight",
        "value.linear.bias",
    }
    assert {name for name in before if name.startswith("value")} == {
        "value.linear.weight",
        "value.linear.bias",
    }


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("name", ["lora", "lora, pre-trained", "progressive"])
def test_old_tasks_are_bit_equal_beside_shrink_and_perturb(name: str, last: bool) -> None:
    strategy, backbone = PRESERVING[name][0](), PRESERVING[name][1]()
    learner, shrink = task_aware_learner(backbone), ShrinkAndPerturb()
    strategies: list[Strategy] = [shrink, strategy] if last else [strategy, shrink]
    learner.attach(strategies)
    learn_task(learner, 0)
    batch = examples(learner, 0, seed=77)
    then = view_outputs(learner, strategy, 0, batch)
    for task in (1, 2):
        learn_task(learner, task)
    assert torch.equal(view_outputs(learner, strategy, 0, batch), then)


@pytest.mark.parametrize("resume", [False, True])
def test_the_view_of_a_task_that_is_learned_again_shows_the_network(resume: bool) -> None:
    """With `resume` the network first gets the task's own tensors."""
    learner, tasks = make_learner(one_layer(bias=False)), PerTask()
    weight = learner.module.layers.weight
    own = torch.full_like(weight, 7.0)
    tasks.end(Named(3), "key", {"layers.weight": own})
    before = weight.detach().clone()
    with tasks.applied(Named(3), learner):
        assert torch.equal(weight, own)
    assert torch.equal(weight, before)
    assert tasks.begin(Named(3), learner, resume) == "key"
    assert Named(3) not in tasks
    assert torch.equal(weight, own if resume else before)
    with torch.no_grad():
        weight.fill_(0.5)
    with tasks.applied(Named(3), learner):
        assert bool((weight == 0.5).all())
    assert tasks.begin(Named(3), learner, resume) is None
    assert bool((weight == 0.5).all())
