"""HAT: the paper's equations, and what a mask promises about old tasks, to the last bit."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from loop_helpers import (
    FixedLearner,
    FlatNet,
    control_learner,
    ignore,
    keyword_grid,
    off_policy_learner,
    off_policy_world,
    plant,
    same,
    stream,
    vector_batch,
    weights,
)
from test_architecture import examples, seen, teach, told
from torch import Tensor, nn

from everloop.agents import MLP, Agent, ConvNet5, ResNet18
from everloop.loop import HAT, Batch, Categorical, Learner, Strategy, SupervisedLearner, Training, attach
from everloop.loop.world import Task


class ToldLearner(FixedLearner):
    """Without a world, but told the task."""

    told = True


class Named:
    """A task."""

    def __init__(self, id: int) -> None:
        self.id, self.name = id, f"task {id}"


class Residual(nn.Module):
    """x + f(x) over units of two layers, as in a residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        result: Tensor = self.last(torch.relu(x + self.second(x)))
        return result


class Features(nn.Module):
    """`layers` on images as channels, from 0 to 1, and how many features come out."""

    def __init__(self, layers: nn.Module, size: int) -> None:
        super().__init__()
        self.layers, self.size = layers, size

    def forward(self, x: Tensor) -> Tensor:
        rows: Tensor = self.layers(x.movedim(-1, 1).float() / 255)
        return rows


def convolutions() -> nn.Module:
    return Features(
        nn.Sequential(
            nn.Conv2d(1, 8, 3),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, groups=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32, 12),
            nn.Tanh(),
        ),
        12,
    )


def units_that_are_not_0_when_off() -> nn.Module:
    return Features(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Sigmoid(), nn.Linear(12, 12), nn.LayerNorm(12), nn.ReLU(), nn.Linear(12, 12)), 12
    )


def agent_learner() -> SupervisedLearner:
    torch.manual_seed(0)
    world = stream(label_space="within_task", task_cue=True)
    network = Agent(world.single_observation_space, 2, recurrent=False, head_per_task=True, token_size=8, attention_heads=2)
    return SupervisedLearner(network, world, Training(learning_rate=1e-2))


def momentum(learner: SupervisedLearner) -> SupervisedLearner:
    optimizer = torch.optim.SGD(learner.module.parameters(), lr=0.2, momentum=0.9, weight_decay=1e-3)
    return SupervisedLearner(learner.module, learner.world, optimizer=optimizer, max_grad_norm=0.5)


LEARNERS: dict[str, Callable[[], SupervisedLearner]] = {
    "mlp": lambda: told(MLP((8, 8, 1), (16, 16)), 1e-2),
    "convolutions": lambda: told(convolutions(), 1e-2),
    "sigmoid and layer norm": lambda: told(units_that_are_not_0_when_off(), 1e-2),
    "residual blocks and group norm": lambda: told(ResNet18((8, 8, 1), 4, "group")),
    "attention": agent_learner,
    "momentum and weight decay": lambda: momentum(told(MLP((8, 8, 1), (40, 40)))),
}
ANYWHERE = pytest.mark.parametrize("name", LEARNERS)


def quick(**settings: Any) -> HAT:
    """Masks that are learned within a few steps; of so few units each must be cheap."""
    return HAT(**{"rate": 0.1, "period": 4, "sparsity": 0.05} | settings)


@ANYWHERE
def test_under_its_view_an_old_task_is_bit_equal_after_three_more(name: str) -> None:
    learner, hat = LEARNERS[name](), quick()
    learner.attach([hat])
    then: dict[int, tuple[Batch, Tensor]] = {}
    for task in range(4):
        teach(learner, [hat], task, 64)
        batch = examples(learner, task, seed=77)
        then[task] = batch, seen(learner, hat, task, batch)
    for task, (batch, outputs) in then.items():
        assert torch.equal(seen(learner, hat, task, batch), outputs)
    assert not torch.equal(learner.outputs(then[0][0]).detach(), then[0][1])  # without the view it is not the same network any more


@ANYWHERE
def test_a_view_leaves_no_trace(name: str) -> None:
    learner, hat = LEARNERS[name](), quick()
    learner.attach([hat])
    teach(learner, [hat], 0, 32)
    hat.begin_task(learner.world.tasks[1], learner)
    learner.learn([1], 32, ignore)  # a new period begins: masks are soft
    before, state = weights(learner.module), {name: b.detach().clone() for name, b in learner.module.named_buffers()}
    batch = examples(learner, 0)
    outputs = seen(learner, Strategy(), 1, batch)
    with pytest.raises(KeyError), hat.view(learner.world.tasks[0], learner):
        raise KeyError
    assert same(before, weights(learner.module))
    assert all(torch.equal(b, state[name]) for name, b in learner.module.named_buffers())
    assert torch.equal(seen(learner, Strategy(), 1, batch), outputs)


def test_a_view_of_the_task_at_hand_shows_it_as_it_will_be_kept() -> None:
    learner, hat = LEARNERS["mlp"](), quick()
    learner.attach([hat])
    hat.begin_task(learner.world.tasks[0], learner)
    learner.learn([0], 32, ignore)
    batch = examples(learner, 0)
    shown = seen(learner, hat, 0, batch)
    assert not torch.equal(shown, seen(learner, Strategy(), 0, batch))
    hat.end_task(learner.world.tasks[0], learner, [batch])
    assert torch.equal(seen(learner, hat, 0, batch), shown)
    assert torch.equal(seen(learner, Strategy(), 0, batch), shown)


@ANYWHERE
def test_later_tasks_can_still_be_learned(name: str) -> None:
    learner, hat = LEARNERS[name](), quick(period=20)
    learner.attach([hat])
    teach(learner, [hat], 0)
    hat.begin_task(learner.world.tasks[1], learner)
    batch = examples(learner, 1, seed=3)

    @torch.no_grad()
    def loss() -> float:
        with hat.view(learner.world.tasks[1], learner), learner.judging():
            return float(learner.loss(batch))

    before = loss()
    learner.learn([1], 1600, ignore)
    assert loss() < 0.8 * before


def layered(optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD, **settings: Any) -> tuple[ToldLearner, HAT]:
    """Two hidden layers in double precision, and a mask over their units."""
    torch.manual_seed(0)
    net = FlatNet(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), "x").double()
    learner, hat = ToldLearner(net, Categorical(3), optimizer(net.parameters(), lr=0.1)), quick(**settings)
    learner.attach([hat])
    return learner, hat


def batches(count: int, seed: int = 0) -> Iterator[Batch]:
    for i in range(count):
        yield vector_batch(8, 4, 3, seed=100 * seed + i)


def learn(learner: Learner, hat: HAT, task: int, steps: int = 12) -> None:
    named: Task = Named(task)
    hat.begin_task(named, learner)
    for batch in batches(steps, task):
        learner.updater.step(learner.loss(batch))
    hat.end_task(named, learner, list(batches(1, task)))


def named(learner: Learner) -> dict[str, Tensor]:
    return {name.removeprefix("layers."): p.detach().clone() for name, p in learner.module.named_parameters()}


def mask(learner: Learner, layer: int) -> Tensor:
    return learner.module.get_submodule(f"layers.{layer}").get_buffer("unit_mask")


def test_the_units_of_hidden_layers_are_multiplied_by_the_mask() -> None:
    learner, hat = layered()
    hat.begin_task(Named(0), learner)
    (batch,), w = batches(1), named(learner)
    a, b = (mask(learner, layer).detach() for layer in (0, 2))
    assert a.shape == (6,)
    assert len(a.unique()) == 6
    h = a * torch.relu(batch.obs["x"][0] @ w["0.weight"].T + w["0.bias"])  # after the activation, as in the paper
    h = b * torch.relu(h @ w["2.weight"].T + w["2.bias"])
    torch.testing.assert_close(learner.outputs(batch)[0].detach(), h @ w["4.weight"].T + w["4.bias"])


def shows(learner: Learner, hat: HAT, s: float) -> None:
    """The mask is sigmoid(s e), but for what single precision does not see beside 1."""
    torch.testing.assert_close(mask(learner, 0).detach(), torch.sigmoid(s * hat.e["layers.0"]), rtol=0, atol=2e-7)


def test_masks_harden_with_the_batches_of_every_period() -> None:
    """Equation 3 with b = 1 ... B, then from the beginning, as with every task."""
    learner, hat = layered(period=4, s_max=100.0)
    for task in range(2):
        hat.begin_task(Named(task), learner)
        for b, batch in zip([1, 2, 3, 4, 1, 2], batches(6), strict=True):
            shows(learner, hat, 1 / 100 + (100 - 1 / 100) * (b - 1) / (4 - 1))
            learner.updater.step(learner.loss(batch))
    learner, hat = layered(period=1, s_max=100.0)
    hat.begin_task(Named(0), learner)
    shows(learner, hat, 100)


def test_only_units_that_no_past_task_uses_have_a_price() -> None:
    """Equation 5, one number for all layers."""
    learner, hat = layered()
    learn(learner, hat, 0)
    hat.sparsity = 0.6
    used = [(hat.learned[0][f"layers.{layer}"] > 0).double() for layer in (0, 2)]
    assert 0 < sum(float(u.sum()) for u in used) < 11
    hat.begin_task(Named(1), learner)
    a = [mask(learner, layer).detach() for layer in (0, 2)]
    above = sum(float((x * (1 - u)).sum()) for x, u in zip(a, used, strict=True))
    below = sum(float((1 - u).sum()) for u in used)
    R = hat.extra_loss(learner, None)
    assert R is not None
    assert float(R.detach()) == pytest.approx(0.6 * above / below, rel=1e-12)
    hat.units = {name: torch.ones_like(u) for name, u in hat.units.items()}
    nothing = hat.extra_loss(learner, None)
    assert nothing is not None
    assert float(nothing.detach()) == 0.0


def test_the_mask_descends_the_loss_and_its_price_by_the_compensated_gradient() -> None:
    """q' = s_max (cosh(s e) + 1) / (s (cosh(e) + 1)) q with q = dL/de of the whole loss; beyond its limits e rests."""
    learner, hat = layered(period=7, s_max=50.0, rate=1e-3, sparsity=0.6)
    hat.begin_task(Named(0), learner)
    for batch in batches(3):
        learner.updater.step(learner.loss(batch))
    hat.e["layers.0"][0], hat.e["layers.0"][1] = 5.9999, -3.0
    hat._show(hat._now())
    s = 1 / 50 + (50 - 1 / 50) * 3 / 6
    e = {name: x.clone().requires_grad_() for name, x in hat.e.items()}
    (batch,), w = batches(1, seed=9), named(learner)
    a, b = torch.sigmoid(s * e["layers.0"]), torch.sigmoid(s * e["layers.2"])
    h = a * (batch.obs["x"][0] @ w["0.weight"].T + w["0.bias"]).relu()
    h = b * (h @ w["2.weight"].T + w["2.bias"]).relu()
    assert batch.target is not None
    loss = nn.functional.cross_entropy(h @ w["4.weight"].T + w["4.bias"], batch.target[0]) + 0.6 * (a.sum() + b.sum()) / 11
    q = dict(zip(e, torch.autograd.grad(loss, list(e.values())), strict=True))
    learner.updater.step(learner.loss(batch))
    moved = 0
    for name, x in e.items():
        x = x.detach()
        compensated = 50 * (torch.cosh(s * x) + 1) / (s * (torch.cosh(x) + 1)) * q[name]
        flat = (s * x).abs() > 50
        assert torch.equal(hat.e[name][flat], x[flat])
        torch.testing.assert_close(hat.e[name][~flat], (x - 1e-3 * compensated)[~flat], rtol=1e-6, atol=1e-12)
        moved += int((~flat).sum())
    assert 0 < moved < 11
    hat.rate = 1e9
    hat.updates = 0
    hat._show(hat._now())
    learner.updater.step(learner.loss(batch))
    assert {float(x.abs()) for x in hat.e["layers.0"]} == {6.0}


@pytest.mark.parametrize("alone", ["gradient", "step", "both"])
def test_with_plain_gradient_descent_weights_move_by_the_papers_gradient(alone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equation 2: g' = (1 - min(a_i^<t, a_j^<t)) g, of a bias (1 - a_i^<t) g; inputs of the first layer count as used.

    To hold the step is the same there as to scale the gradient, each without the other.
    """
    learner, hat = layered()
    learn(learner, hat, 0)
    learn(learner, hat, 1)
    a, b = (torch.maximum(*[(hat.learned[task][f"layers.{layer}"] > 0).double() for task in (0, 1)]) for layer in (0, 2))
    assert 0 < a.sum() < 6
    assert 0 < b.sum() < 5
    free = {"0.weight": 1 - a[:, None].expand(6, 4), "0.bias": 1 - a}
    free |= {"2.weight": 1 - torch.minimum(b[:, None], a[None]), "2.bias": 1 - b}
    if alone == "gradient":
        monkeypatch.setattr(hat, "kept", dict(learner.module.named_parameters()))
    if alone == "step":
        monkeypatch.setattr(hat, "edit_gradients", lambda learner, batch: None)
    hat.begin_task(Named(2), learner)
    for batch in batches(5, 2):
        w = dict(learner.module.named_parameters())
        g = torch.autograd.grad(learner.loss(batch), list(w.values()))
        expected = {
            name: (p - 0.1 * free.get(name.removeprefix("layers."), 1.0) * d).detach() for (name, p), d in zip(w.items(), g, strict=True)
        }
        learner.updater.step(learner.loss(batch))
        for name, p in learner.module.named_parameters():
            torch.testing.assert_close(p.detach(), expected[name], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("restore", [True, False])
def test_only_putting_weights_back_holds_them_under_adam(restore: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gradient of 0 does not: that is why equation 2 holds for the step."""
    learner, hat = layered(torch.optim.Adam)
    learn(learner, hat, 0)
    then, used = named(learner), {name.removeprefix("layers."): u > 0 for name, u in hat.used.items()}
    if not restore:
        monkeypatch.setattr(hat, "kept", dict(learner.module.named_parameters()))
    hat.begin_task(Named(1), learner)
    for batch in batches(10, 1):
        learner.updater.step(learner.loss(batch))
    now = named(learner)
    assert set(used) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert all(torch.equal(now[name][u], then[name][u]) for name, u in used.items()) is restore
    assert not any(torch.equal(now[name][~u], then[name][~u]) for name, u in used.items())


def inputs_used(net: nn.Module, x: Tensor) -> tuple[HAT, dict[str, Tensor]]:
    """Which inputs of each layer count as used after a task."""
    torch.manual_seed(0)
    learner, hat = ToldLearner(FlatNet(net, "x"), Categorical(3)), quick()
    learner.attach([hat])
    hat.begin_task(Named(0), learner)
    batch = Batch({"x": x[None]}, torch.ones(1, len(x), dtype=torch.bool), torch.zeros(1, len(x), dtype=torch.long))
    hat.end_task(Named(0), learner, [batch])
    return hat, {name.removeprefix("layers."): u for name, u in hat.inputs.items()}


@pytest.mark.parametrize("rows", [1, 20])
def test_a_layers_inputs_are_as_used_as_the_units_they_come_from(rows: int) -> None:
    """Through activations, pooling, flattening and sums; however few examples there are, and whatever is dark in them."""
    hat, found = inputs_used(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)), torch.zeros(rows, 4))
    assert torch.equal(found["0"], torch.ones(4))
    assert torch.equal(found["2"], hat.units["layers.0"])
    assert 0 < found["2"].sum() < 6
    net = nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 3)
    )
    hat, found = inputs_used(net, torch.randn(rows, 2, 8, 8))
    assert torch.equal(found["0"], torch.ones(2))
    assert torch.equal(found["2"], hat.units["layers.0"])
    assert torch.equal(found["5"], hat.units["layers.2"].repeat_interleave(4))
    assert len(found["5"].unique()) == 2
    hat, found = inputs_used(Residual(), torch.randn(rows, 4))
    assert torch.equal(found["second"], hat.units["layers.first"])
    hat, found = inputs_used(
        nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 9), nn.LayerNorm(9), nn.Linear(9, 5), nn.Linear(5, 3)),
        torch.randn(rows, 4),
    )
    assert all(bool(u.all()) for u in found.values())


def test_a_channel_of_a_grouped_convolution_reads_its_own_group() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 6, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3))
    hat, _ = inputs_used(net, torch.randn(5, 1, 4, 4))
    i, j = hat.units["layers.2"], hat.units["layers.0"]
    expected = torch.stack([torch.minimum(i[k], j[:2] if k < 3 else j[2:]) for k in range(6)])
    assert torch.equal(hat.used["layers.2.weight"], expected[..., None, None].expand(6, 2, 3, 3))
    assert 0 < expected.sum() < 12


def test_layers_that_share_their_weights_have_no_mask_and_belong_to_the_first_task() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    hat, _ = inputs_used(nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)), torch.randn(9, 4))
    assert set(hat.e) == {"layers.4"}
    assert all(bool(hat.used[f"layers.{name}"].all()) for name in ("0.weight", "0.bias", "2.bias"))


def test_a_higher_price_leaves_more_units_to_later_tasks_and_used_ones_are_used_again() -> None:
    def units_of(sparsity: float) -> tuple[float, float]:
        learner, hat = told(MLP((8, 8, 1), (40, 40)), 1e-2), HAT(sparsity=sparsity, rate=0.1, period=20)
        learner.attach([hat])
        for task in range(2):
            teach(learner, [hat], task, 480)
        first, second = (torch.cat([e > 0 for e in hat.learned[task].values()]) for task in range(2))
        return float(first.sum()), float((second & ~first).sum())

    cheap, dear = units_of(0.0), units_of(5.0)
    assert dear[0] < 0.6 * cheap[0]
    assert dear[1] < cheap[0] / 2


def test_copies_of_the_network_keep_the_mask_they_were_made_with() -> None:
    learner, hat = LEARNERS["mlp"](), quick()
    learner.attach([hat])
    teach(learner, [hat], 0, 32)
    batch = examples(learner, 0)
    frozen, copied = learner.frozen_copy(), copy.deepcopy(learner.module)
    outputs = seen(learner, hat, 0, batch)
    teach(learner, [hat], 1, 32)
    for network in (frozen, copied):
        assert torch.equal(learner.outputs(batch, network).detach(), outputs)
    assert not any(p.requires_grad for p in frozen.parameters())


def test_neither_weights_nor_their_optimizer_nor_what_is_saved_of_the_network_change() -> None:
    learner, hat = LEARNERS["mlp"](), quick()
    names, saved, groups = list(learner.weights()), list(learner.module.state_dict()), len(learner.optimizer.param_groups)
    learner.attach([hat])
    teach(learner, [hat], 0, 32)
    assert list(learner.weights()) == names
    assert list(learner.module.state_dict()) == saved
    assert len(learner.optimizer.param_groups) == groups


@pytest.mark.parametrize("attached", [True, False], ids=["attached", "to be attached"])
@pytest.mark.parametrize("steps", [6, None], ids=["in the midst of a task", "between tasks"])
def test_a_saved_state_goes_on_bit_for_bit_in_a_network_made_anew(steps: int | None, attached: bool) -> None:
    def final(anew: bool) -> tuple[list[Tensor], list[Tensor]]:
        learner, hat = layered(torch.optim.Adam)
        learn(learner, hat, 0)
        if steps is not None:
            hat.begin_task(Named(1), learner)
            for batch in batches(steps, 1):
                learner.updater.step(learner.loss(batch))
        if anew:
            state = *copy.deepcopy((learner.module.state_dict(), learner.optimizer.state_dict())), hat.state_dict()
            for batch in batches(4, 3):  # what happens to the first does not reach what is saved
                learner.updater.step(learner.loss(batch))
            learner, hat = layered(torch.optim.Adam)
            learner.module.load_state_dict(state[0])
            learner.optimizer.load_state_dict(state[1])
            if not attached:
                hat = quick()
            hat.load_state_dict(state[2])
            if not attached:
                learner.attach([hat])
        (batch,) = batches(1, 9)
        outputs = [learner.outputs(batch).detach()]
        if steps is not None:
            for batch in batches(6, 2):
                learner.updater.step(learner.loss(batch))
            hat.end_task(Named(1), learner, list(batches(1)))
        learn(learner, hat, 2)
        for task in range(3):
            with hat.view(Named(task), learner):
                outputs.append(learner.outputs(batch).detach())
        return weights(learner.module), outputs

    assert all(same(a, b) for a, b in zip(final(True), final(False), strict=True))


def test_a_task_that_comes_back_begins_with_its_mask() -> None:
    learner, hat = layered()
    learn(learner, hat, 0)
    learn(learner, hat, 1)
    first = {name: e.clone() for name, e in hat.learned[0].items()}
    hat.begin_task(Named(0), learner)
    assert all(torch.equal(hat.e[name], e) for name, e in first.items())
    for batch in batches(3, 3):
        learner.updater.step(learner.loss(batch))
    assert all(torch.equal(hat.learned[0][name], e) for name, e in first.items())  # until it ends again
    assert not all(torch.equal(hat.e[name], e) for name, e in first.items())


def test_what_the_outputs_do_not_depend_on_stays_free_in_control() -> None:
    learner, hat = control_learner(world=plant(task_cue=True)), quick()
    learner.attach([hat])
    teach_control(learner, hat, 0)
    free = {name for name in learner.weights() if name not in hat.used}
    assert free == {f"{part}.linear.{p}" for part in ("head", "value") for p in ("weight", "bias")}
    assert bool(hat.used["attention.norm.weight"].all())
    assert not any(name.startswith("value") for name in hat.e)
    batch = learner.rollout(plant(task_cue=True), [0], 8, seed=7)
    then, value = seen(learner, hat, 0, batch), named(learner)["value.linear.weight"]
    teach_control(learner, hat, 1)
    assert torch.equal(seen(learner, hat, 0, batch), then)
    assert not torch.equal(named(learner)["value.linear.weight"], value)


def teach_control(learner: Learner, hat: HAT, task: int) -> None:
    hat.begin_task(learner.world.tasks[task], learner)
    learner.learn([task], 64, ignore)
    hat.end_task(learner.world.tasks[task], learner, [learner.rollout(plant(task_cue=True), [task], 8, seed=task)])


REFUSED: dict[str, tuple[Callable[[], Learner], str]] = {
    "recurrent": (lambda: control_learner(recurrent=True, world=plant(task_cue=True)), "allowed: networks without a recurrent layer"),
    "batch norm": (lambda: told(ConvNet5((8, 8, 1), (12, 12))), r"a batch norm undoes, allowed: networks without one \(norm group\)"),
    "dqn": (lambda: off_policy_learner(world=off_policy_world(sac=False, task_cue=True)), "target network .* allowed here: replay, ewc"),
    "no units": (lambda: told(MLP((8, 8, 1), ())), "allowed: networks with a linear layer or a convolution there"),
    "not told": (lambda: SupervisedLearner(told(MLP((8, 8, 1), (4,))).module, stream()), "allowed where the world tells it"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_where_masks_make_no_sense_they_are_refused_before_anything_is_touched(name: str) -> None:
    make, why = REFUSED[name]
    learner = make()
    with pytest.raises(ValueError, match=why):
        learner.attach([HAT()])
    assert not any(layer._forward_hooks for layer in learner.module.modules())
    learner.attach([HAT(masks=False)])


def test_a_loop_that_is_not_ours_cannot_tell_the_task() -> None:
    module = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    with pytest.raises(ValueError, match="allowed where the world tells it"):
        attach([HAT()], module, torch.optim.SGD(module.parameters(), lr=0.1))


def test_a_frozen_batch_norm_below_the_units_is_no_reason() -> None:
    network = ConvNet5((8, 8, 1), (12, 12))
    network.freeze_convolutions()
    learner, hat = told(network), quick()
    learner.attach([hat])
    teach(learner, [hat], 0, 32)
    assert set(hat.e) == {"backbone.layers.0", "backbone.layers.2"}


@pytest.mark.parametrize("bad", keyword_grid(s_max=[0.5], sparsity=[-0.1], rate=[0.0], period=[0]), ids=str)
def test_settings_that_cannot_be_are_refused_by_name_and_value(bad: dict[str, Any]) -> None:
    ((name, value),) = bad.items()
    with pytest.raises(ValueError, match=f"{name} is {value!r}, allowed: "):
        HAT(**bad)
