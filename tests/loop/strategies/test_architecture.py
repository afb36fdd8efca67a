"""PackNet, LoRA, progressive columns, growth: what they promise about old tasks, to the
last bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from architecture_helpers import examples, four_tasks, seen, teach, told
from loop_helpers import PPO_PARAMETERS, agent, plant, same, stream, weights
from stable_baselines3 import PPO
from torch import Tensor, nn

from everloop.agents import MLP, Agent, Classifier, ConvNet5, GrowingMLP, ProgressiveMLP
from everloop.loop import (
    EWC,
    HAT,
    Growth,
    Learner,
    LoRA,
    PackNet,
    Progressive,
    SB3Learner,
    ShrinkAndPerturb,
    Strategy,
    SupervisedLearner,
)
from everloop.loop.run import Plan, Run

Finish = Callable[[Learner, Strategy, int], None]


class Normed(nn.Module):
    """Linear layers with a batch norm, whose statistics every task moves."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 12
        self.layers = nn.Sequential(
            nn.Linear(64, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        rows: Tensor = self.layers(x.flatten(1).float() / 255)
        return rows


KEEPERS: dict[str, tuple[Callable[[], Strategy], Callable[[], nn.Module]]] = {
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


@pytest.mark.parametrize("name", KEEPERS)
def test_under_its_view_an_old_task_is_bit_equal_after_three_more_under_adam(name: str) -> None:
    strategy, backbone = KEEPERS[name][0](), KEEPERS[name][1]()
    learner = told(backbone)
    then, now, bare = four_tasks(learner, strategy)
    assert same(then, now)
    assert not torch.equal(bare, then[0])  # without the view it is not the same network any more


@pytest.mark.parametrize("name", KEEPERS)
def test_a_view_leaves_no_trace(name: str) -> None:
    strategy, backbone = KEEPERS[name][0](), KEEPERS[name][1]()
    learner = told(backbone)
    learner.attach([strategy])
    for task in range(2):
        teach(learner, [strategy], task, 32)
    before, state = (
        weights(learner.module),
        {name: b.clone() for name, b in learner.module.named_buffers()},
    )
    trained = [p.requires_grad for p in learner.module.parameters()]
    batch = examples(learner, 0)
    outputs = seen(learner, Strategy(), 1, batch)
    with pytest.raises(KeyError), strategy.view(learner.world.tasks[0], learner):
        raise KeyError
    assert same(before, weights(learner.module))
    assert all(torch.equal(b, state[name]) for name, b in learner.module.named_buffers())
    assert [p.requires_grad for p in learner.module.parameters()] == trained
    assert torch.equal(seen(learner, Strategy(), 1, batch), outputs)


@pytest.mark.parametrize("name", KEEPERS)
def test_later_tasks_can_still_be_learned(name: str) -> None:
    strategy, backbone = KEEPERS[name][0](), KEEPERS[name][1]()
    learner = told(backbone, rate=1e-2)
    learner.attach([strategy])
    teach(learner, [strategy], 0)
    strategy.begin_task(learner.world.tasks[1], learner)
    batch = examples(learner, 1, seed=3)
    before = float(learner.loss(batch).detach())
    learner.learn([1], 1600)
    assert float(learner.loss(batch).detach()) < 0.8 * before


def test_packnet_gives_each_task_its_share_of_what_is_free_the_largest_weights_first() -> None:
    learner, packnet = told(MLP((8, 8, 1), (16, 16))), PackNet(share=0.25, retrain_steps=0)
    learner.attach([packnet])
    name, free = "backbone.layers.0.weight", 64 * 16
    for task in range(3):
        packnet.begin_task(learner.world.tasks[task], learner)
        learner.learn([task], 64)
        trained = dict(learner.module.named_parameters())[name].detach().clone()
        was_free = (
            packnet.owner[name] == 0
            if packnet.owner
            else torch.ones_like(trained, dtype=torch.bool)
        )
        packnet.end_task(learner.world.tasks[task], [examples(learner, task)], learner)
        mine = packnet.owner[name] == task + 1
        assert int(mine.sum()) == round(0.25 * free)
        assert bool(trained[mine].abs().min() >= trained[was_free & ~mine].abs().max())
        now = dict(learner.module.named_parameters())[name]
        assert not now[was_free & ~mine].any()
        assert torch.equal(now[mine], trained[mine])
        free -= round(0.25 * free)
    heads = packnet.owner["heads.linear.weight"].reshape(5, 2, 16)
    assert [heads[k].unique().tolist() for k in range(5)] == [[1], [2], [3], [0], [0]]
    assert packnet.owner["backbone.layers.0.bias"].unique().tolist() == [1]


def test_packnet_retrains_only_what_the_task_owns() -> None:
    learner, packnet = told(MLP((8, 8, 1), (16, 16))), PackNet(share=0.5, retrain_steps=20)
    learner.attach([packnet])
    teach(learner, [packnet], 0)
    first = {name: p.detach().clone() for name, p in learner.module.named_parameters()}
    teach(learner, [packnet], 1)
    for name, p in learner.module.named_parameters():
        owner = packnet.owner[name]
        assert torch.equal(p[owner == 1], first[name][owner == 1])
        if p.ndim > 1 and "heads" not in name:
            assert not p[owner == 0].any()
            assert not torch.equal(p[owner == 2], first[name][owner == 2])


def test_packnet_gives_a_returning_task_another_share_and_its_view_shows_the_weights_now() -> None:
    learner, packnet = told(MLP((8, 8, 1), (16, 16)), rate=1e-2), PackNet(retrain_steps=10)
    learner.attach([packnet])
    for task in (0, 1):
        teach(learner, [packnet], task, 32)
    batches = [examples(learner, task, seed=77) for task in (0, 1)]
    other = seen(learner, packnet, 1, batches[1])
    packnet.begin_task(learner.world.tasks[0], learner)
    learner.learn([0], 160)
    assert torch.equal(seen(learner, packnet, 0, batches[0]), learner.outputs(batches[0]).detach())
    packnet.end_task(learner.world.tasks[0], [examples(learner, 0)], learner)
    assert packnet.tasks.keys == {1: 2, 0: 3}
    assert torch.equal(seen(learner, packnet, 1, batches[1]), other)


@pytest.mark.parametrize(("keeper", "network"), [(LoRA, MLP), (Progressive, ProgressiveMLP)])
@pytest.mark.parametrize("sharer", [PackNet, HAT])
def test_beside_what_shares_out_weights_they_are_refused(
    keeper: Any, network: Any, sharer: Any
) -> None:
    with pytest.raises(
        ValueError,
        match=rf"^{sharer.name} divides the weights among tasks and {keeper.name} freezes weights",
    ):
        told(network((8, 8, 1), (16, 16))).attach([sharer(), keeper()])


class Columns(nn.Module):
    """Columns as an agent's encoder."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.net, self.size = ProgressiveMLP((inputs,), (8, 8)), 8

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.net(x * 255)
        return features


@pytest.mark.parametrize("kind", [LoRA, Progressive])
def test_in_control_the_value_head_goes_on_learning(kind: type[Strategy]) -> None:
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
def test_in_any_order_with_what_changes_weights_between_tasks_an_old_task_is_bit_equal(
    name: str, last: bool
) -> None:
    strategy, backbone = KEEPERS[name][0](), KEEPERS[name][1]()
    learner, shrink = told(backbone), ShrinkAndPerturb()
    strategies: list[Strategy] = [shrink, strategy] if last else [strategy, shrink]
    learner.attach(strategies)
    teach(learner, strategies, 0)
    batch = examples(learner, 0, seed=77)
    then = seen(learner, strategy, 0, batch)
    for task in (1, 2):
        teach(learner, strategies, task)
    assert torch.equal(seen(learner, strategy, 0, batch), then)


def test_progressive_columns_are_the_papers_equation() -> None:
    torch.manual_seed(0)
    net = ProgressiveMLP((2, 2, 1), (3, 5))
    x = torch.randint(256, (7, 2, 2, 1), dtype=torch.uint8)
    plain = MLP((2, 2, 1), (3, 5))
    plain.load_state_dict(
        {
            f"layers.{2 * i}.{p}": getattr(net.columns[0].own[i], p)
            for i in range(2)
            for p in ("weight", "bias")
        }
    )
    torch.testing.assert_close(net(x), plain(x))
    net.add_column()
    net.add_column()
    rows, (a, b, c) = x.flatten(1).float() / 255, net.columns
    first = [torch.relu(column.own[0](rows)) for column in (a, b, c)]
    U = c.laterals[0].weight.split(3, dim=1)
    expected = torch.relu(c.own[1](first[2]) + first[0] @ U[0].T + first[1] @ U[1].T)
    torch.testing.assert_close(net(x), expected)
    assert net.column == 2
    net.column = 0
    torch.testing.assert_close(net(x), plain(x))


def test_a_task_that_comes_back_gets_a_new_column_and_the_other_tasks_stay_as_they_were() -> None:
    learner, progressive = told(ProgressiveMLP((8, 8, 1), (8, 8))), Progressive()
    learner.attach([progressive])
    for task in (0, 1):
        teach(learner, [progressive], task)
    batches = [examples(learner, task) for task in (0, 1)]
    then = [seen(learner, progressive, task, batch) for task, batch in enumerate(batches)]
    teach(learner, [progressive], 0)
    now = [seen(learner, progressive, task, batch) for task, batch in enumerate(batches)]
    assert progressive.tasks.keys == {0: 2, 1: 1}
    assert torch.equal(now[1], then[1])
    assert not torch.equal(now[0], then[0])


def test_tasks_of_one_phase_share_a_column() -> None:
    learner, progressive = told(ProgressiveMLP((8, 8, 1), (8, 8))), Progressive()
    world = stream(label_space="within_task", task_cue=True)
    Run(learner, Plan([[0, 1], [2]], [64, 64], 10**9, 4), world, world, [progressive]).go()
    assert progressive.tasks.keys == {0: 0, 1: 0, 2: 1}


def test_a_network_grows_where_the_loss_stays_high_and_nothing_changes_at_that_moment() -> None:
    def grown(threshold: float) -> int:
        torch.manual_seed(0)
        learner = SupervisedLearner(Classifier(GrowingMLP((8, 8, 1), (6, 6)), 10), stream())
        growth = Growth(units=4, threshold=threshold, patience=4, limit=3)
        learner.attach([growth])
        growth.begin_task(learner.world.tasks[0], learner)
        learner.learn([0], 8 * 40)
        branches = learner.module.get_submodule("backbone.branches")
        assert len(list(branches.children())) == growth.grown
        return growth.grown

    assert grown(0.0) == 3
    assert grown(100.0) == 0
    torch.manual_seed(0)
    net, x = GrowingMLP((8, 8, 1), (6, 6)), torch.randint(256, (5, 8, 8, 1), dtype=torch.uint8)
    before = net(x)
    net.add_capacity(7)
    assert torch.equal(net(x), before)
    assert sum(p.numel() for p in net.branches.parameters()) == 64 * 7 + 7 + 7 * 6


def test_what_has_grown_is_trained_and_other_strategies_go_on() -> None:
    torch.manual_seed(0)
    learner = SupervisedLearner(Classifier(GrowingMLP((8, 8, 1), (6, 6)), 10), stream())
    growth, ewc = Growth(units=4, threshold=0.0, patience=4, limit=1), EWC(10.0)
    learner.attach([growth, ewc])
    for task in range(2):
        for s in (growth, ewc):
            s.begin_task(learner.world.tasks[task], learner)
        learner.learn([task], 64)
        ewc.end_task(learner.world.tasks[task], [learner.rollout(stream(), [task], 4, 0)], learner)
    V = learner.module.get_submodule("backbone.branches.0.2").weight
    assert float(V.detach().abs().max()) > 0  # type: ignore[operator, union-attr]
    assert "backbone.branches.0.2.weight" in ewc.penalty.precision


def test_networks_without_units_are_refused() -> None:
    for network in (ProgressiveMLP, GrowingMLP):
        with pytest.raises(ValueError, match="hidden is"):
            network((8, 8, 1), ())
        with pytest.raises(ValueError, match="hidden is"):
            network((8, 8, 1), (3, 0))
    with pytest.raises(ValueError, match=r"^units is 0; it must be 1 or more$"):
        GrowingMLP((8, 8, 1)).add_capacity(0)
