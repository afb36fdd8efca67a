"""Strategies that store examples: what is stored, which of it is rehearsed, and the losses as written."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_helpers import (
    FixedLearner,
    FlatNet,
    control_learner,
    distance,
    ignore,
    keyword_grid,
    mlp,
    same,
    stream,
    vector_batch,
    weights,
)
from torch import Tensor, nn

from everloop.loop import (
    AGEM,
    CLEAR,
    DER,
    ERACE,
    GEM,
    MIR,
    Batch,
    Categorical,
    DERPlusPlus,
    Gaussian,
    GDumb,
    ICaRL,
    Learner,
    Replay,
    Strategy,
    SupervisedLearner,
    Tags,
    Training,
    attach,
)
from everloop.loop.strategies.rehearsal import Rehearsal

INPUTS, CLASSES, RATE = 3, 5, 0.1
KINDS = pytest.mark.parametrize("recurrent", [False, True], ids=["ppo", "recurrent ppo"])
seeds = st.integers(0, 2**31)


class Named(NamedTuple):
    id: int = 0
    name: str = "any"


class Untold(FixedLearner):
    """Has no world that could tell the task."""

    told = False


def learner_of(strategies: Sequence[Strategy] = (), likelihood: Any = None, outputs: int = CLASSES, groups: bool = False) -> Untold:
    """Two layers in double precision; with `groups` the second one learns at a rate of its own."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(INPUTS, 4), nn.Tanh(), nn.Linear(4, outputs)).double()
    rates = [{"params": layers[0].parameters()}, {"params": layers[2].parameters(), "lr": 0.3}] if groups else layers.parameters()
    learner = Untold(FlatNet(layers, "x"), likelihood or Categorical(outputs), torch.optim.SGD(rates, lr=RATE))
    learner.attach(strategies)
    return learner


def examples(count: int, task: int = 0, seed: int = 0, labels: Sequence[int] | None = None) -> Batch:
    batch = vector_batch(count, INPUTS, CLASSES, seed=seed)
    target = batch.target if labels is None else torch.tensor([labels])
    return replace(batch, target=target, task=torch.full((count,), task))


def step(learner: FixedLearner, batch: Batch) -> None:
    """One update, as a supervised learner takes it."""
    output = learner.forward(batch)
    learner.minibatch = replace(batch, output=output.prediction.detach())
    for strategy in learner.strategies:
        strategy.observe(learner.minibatch, learner)
    loss = F.cross_entropy(output.prediction.flatten(0, 1), batch.target.flatten())  # type: ignore[union-attr]
    learner.updater.step(sum(learner.output_losses(learner.minibatch, output), loss))


def foresee(strategy: Rehearsal, learner: Learner, *counts: int | None, tasks: Sequence[int] | None = None) -> list[Batch]:
    """What the strategy is about to draw, one batch for each count; it draws the same afterwards."""
    state = strategy.memory.rng.bit_generator.state
    drawn = [strategy.draw(learner, None if tasks is None else np.array(tasks), count) for count in counts]
    strategy.memory.rng.bit_generator.state = state
    assert all(batch is not None for batch in drawn)
    return [batch for batch in drawn if batch is not None]


def stored(strategy: Rehearsal, learner: Learner) -> Batch:
    return strategy.read(np.arange(len(strategy.memory)), learner)


def perturb(module: nn.Module, seed: int, size: float = 0.5) -> None:
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p += size * torch.randn(p.shape, generator=g, dtype=p.dtype)


def by_hand(module: Any, x: Tensor) -> Tensor:
    """The outputs of the two layers."""
    first, last = module.layers[-3], module.layers[-1]
    return torch.tanh(x @ first.weight.T + first.bias) @ last.weight.T + last.bias


def cross_entropies(z: Tensor, y: Tensor) -> Tensor:
    """-log(exp(z_y) / sum exp(z)) of each row."""
    return z.exp().sum(-1).log() - z[torch.arange(len(y)), y]


def gradients(loss: Tensor | None, module: nn.Module) -> list[Tensor]:
    """d loss / d weights, 0 where there is none."""
    assert loss is not None
    parameters = list(module.parameters())
    found = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def close(a: Sequence[Tensor], b: Sequence[Tensor], rtol: float = 1e-9, atol: float = 1e-9) -> bool:
    return len(a) == len(b) and all(torch.allclose(x, y, rtol=rtol, atol=atol) for x, y in zip(a, b, strict=True))


def digit_learner(balanced: bool = False) -> SupervisedLearner:
    module = mlp()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    learner = SupervisedLearner(module, stream(), Training(balanced=balanced), optimizer)
    if learner.counts is not None:
        learner.counts = learner.counts.double()
    return learner


def train(learner: Learner, strategy: Strategy, tasks: Sequence[int], steps: int = 64) -> None:
    for task in tasks:
        strategy.begin_task(learner.world.tasks[task], learner)
        learner.learn([task], steps, ignore)
        strategy.end_task(learner.world.tasks[task], learner, [])


def away(learner: Learner) -> None:
    """Move the weights, so that what was stored is no longer what the network says."""
    torch.manual_seed(0)
    perturb(learner.module, 1, 0.1)


class Watch(Strategy):
    """Notes what the network puts out for every fresh batch, before the update that learns from it."""

    def __init__(self) -> None:
        self.seen: list[tuple[Batch, Tensor, Tensor | None]] = []

    def observe(self, batch: Batch, learner: Learner) -> None:
        with torch.no_grad():
            output = learner.forward(batch)
        self.seen.append((batch, output.prediction.clone(), None if output.value is None else output.value.clone()))

    def by_observation(self, key: str) -> dict[bytes, tuple[Tensor, Tensor | None]]:
        """What was put out for each example, by the example's bytes."""
        found = {}
        for batch, prediction, value in self.seen:
            for i in range(len(batch)):
                found[batch.obs[key][:, i].numpy().tobytes()] = (prediction[:, i], None if value is None else value[:, i])
        return found


# Replay's memories


@pytest.mark.parametrize("memory", ["uncertain", "informative"])
def test_what_is_kept_of_each_class_is_what_the_network_was_least_sure_of_or_had_most_to_learn_from(memory: str) -> None:
    """Entropy -sum p log p, or -log p_y, of the outputs when the example came: whatever the network says later."""
    replay = Replay(capacity=9, memory=memory)
    learner = learner_of([replay])
    told: list[tuple[float, int, bytes]] = []
    for seed in range(8):
        batch = examples(6, seed=seed, labels=[0, 1, 2, 0, 1, 2])
        p = torch.softmax(by_hand(learner.module, batch.obs["x"][0]), -1).detach()
        y = batch.target[0]  # type: ignore[index]
        scores = -(p * p.log()).sum(-1) if memory == "uncertain" else -p[torch.arange(6), y].log()
        told += [(float(s), int(label), x.numpy().tobytes()) for s, label, x in zip(scores, y, batch.obs["x"][0], strict=True)]
        step(learner, batch)
        perturb(learner.module, seed)
    items = replay.memory.read(np.arange(9))
    for label in range(3):
        best = {x for _, _, x in sorted((t for t in told if t[1] == label), reverse=True)[:3]}
        assert {x.tobytes() for x, y in zip(items["obs.x"], items["target"], strict=True) if y == label} == best


def test_a_ring_rehearses_the_last_examples_of_each_task() -> None:
    replay = Replay(capacity=8, memory="ring", batch_size=50)
    learner = learner_of([replay])
    batches = [examples(7, task, seed=task) for task in (3, 1, 3, 2)]
    for batch in batches:
        replay.begin_task(Named(int(batch.task[0])), learner)  # type: ignore[index]
        replay.observe(batch, learner)
        replay.end_task(Named(int(batch.task[0])), learner, [])  # type: ignore[index]
    kept = stored(replay, learner)
    for last in batches[1:]:
        mine = {x.numpy().tobytes() for x in kept.obs["x"][0][kept.task == last.task[0]]}  # type: ignore[index]
        assert 2 <= len(mine) <= 3
        assert mine == {x.numpy().tobytes() for x in last.obs["x"][0][-len(mine) :]}
    assert len(kept) == 8


def test_class_balance_is_kept_over_batches_of_one_class() -> None:
    replay = Replay(capacity=10, memory="class-balanced")
    learner = learner_of([replay])
    for label in (4, 4, 0, 0, 0, 2):
        replay.observe(examples(7, seed=label, labels=[label] * 7), learner)
    labels = stored(replay, learner).target
    assert sorted(torch.bincount(labels[0], minlength=5).tolist()) == [0, 0, 3, 3, 4]  # type: ignore[index]


def test_with_current_the_task_at_hand_is_rehearsed_as_well_and_no_boundary_has_to_be_told() -> None:
    """The update is along the fresh loss plus strength times that of a draw from everything stored, fresh examples included."""
    replay = Replay(0.7, capacity=12, batch_size=6, current=True)
    learner = learner_of([replay])
    for i in range(4):
        batch = examples(4, task=i // 2, seed=i)
        before = copy.deepcopy(learner.module)
        twin = copy.deepcopy(replay)
        twin.observe(replace(batch, output=learner.outputs(batch).detach()), learner)
        (drawn,) = foresee(twin, learner, 6)
        total = cross_entropies(by_hand(before, batch.obs["x"][0]), batch.target[0]).mean()  # type: ignore[index]
        total = total + 0.7 * cross_entropies(by_hand(before, drawn.obs["x"][0]), drawn.target[0]).mean()  # type: ignore[index]
        step(learner, batch)
        expected = [p.detach() - RATE * g for p, g in zip(before.parameters(), gradients(total, before), strict=True)]
        assert distance(weights(learner.module), expected) < 1e-12
        assert i % 2 or int(drawn.task.max()) == i // 2, "a task's first batch is rehearsed at once"  # type: ignore[union-attr]


def test_the_shares_of_the_classes_are_reported_at_each_tasks_end() -> None:
    replay, heard = Replay(capacity=8), list[tuple[int, dict[str, float]]]()
    learner = learner_of([replay])
    learner.on_scalars = lambda step, scalars: heard.append((step, scalars))
    learner.steps = 17
    replay.observe(examples(6, labels=[0, 0, 3, 3, 3, 4]), learner)
    assert heard == []
    replay.end_task(Named(), learner, [])
    shares = {"memory/Replay/class_0": 1 / 3, "memory/Replay/class_3": 1 / 2, "memory/Replay/class_4": 1 / 6}
    assert heard == [(17, pytest.approx(shares))]


# DER


def test_der_stores_what_the_network_put_out_before_it_learned_from_the_example() -> None:
    """In a stream: images as bytes, and the very outputs of the forward pass that the update was made from."""
    learner, watch, der = digit_learner(), Watch(), DER(capacity=200)
    learner.attach([watch, der])
    train(learner, der, [0, 1])
    seen, kept = watch.by_observation("image"), stored(der, learner)
    assert len(kept) == 128
    assert kept.obs["image"].dtype == torch.uint8
    for i in range(len(kept)):
        assert torch.equal(kept.output[:, i], seen[kept.obs["image"][:, i].numpy().tobytes()][0])  # type: ignore[index]
    assert distance([kept.output], [learner.outputs(kept).detach()]) > 0.1  # type: ignore[list-item]


def test_what_der_stores_is_of_the_very_pass_that_is_learned_from() -> None:
    """A network that drops units at random would say something else if it were asked again."""
    torch.manual_seed(0)
    der = DER(capacity=6)
    learner = FixedLearner(FlatNet(nn.Sequential(nn.Dropout(0.5), nn.Linear(INPUTS, CLASSES)), "x").double(), Categorical(CLASSES))
    learner.attach([der])
    step(learner, examples(6))
    assert torch.equal(stored(der, learner).output, learner.minibatch.output)  # type: ignore[arg-type, union-attr]
    assert not torch.equal(learner.outputs(stored(der, learner)), learner.outputs(stored(der, learner)))


@KINDS
def test_in_control_der_stores_the_policys_outputs_of_the_rollout(recurrent: bool) -> None:
    learner, watch, der = control_learner(recurrent), Watch(), DER(capacity=300)
    learner.attach([watch, der])
    train(learner, der, [0])
    seen, kept = watch.by_observation("sensor_0"), stored(der, learner)
    assert len(kept) == 64 / learner.sequence_length
    for i in range(len(kept)):
        torch.testing.assert_close(kept.output[:, i], seen[kept.obs["sensor_0"][:, i].numpy().tobytes()][0])  # type: ignore[index]
    assert distance([kept.output], [learner.outputs(kept).detach()]) > 1e-3  # type: ignore[list-item]


@settings(deadline=None, max_examples=15)
@given(alpha=st.floats(0.1, 3.0), beta=st.floats(0.1, 3.0), plus=st.booleans(), seed=seeds)
def test_ders_gradient_is_that_of_the_squared_distance_to_stored_outputs_and_another_draws_labels(
    alpha: float, beta: float, plus: bool, seed: int
) -> None:
    """alpha mean (z - h(x))^2, and in DER++ beta times the mean cross-entropy of a second draw."""
    der = DERPlusPlus(alpha, beta, 20, 6, seed=seed) if plus else DER(alpha, 20, 6, seed=seed)
    learner = learner_of([der])
    for i in range(3):
        step(learner, examples(5, seed=seed + i))
        perturb(learner.module, seed + i)
    dark, labelled = foresee(der, learner, 6, 6)
    h = by_hand(learner.module, dark.obs["x"][0])
    written = alpha * ((dark.output[0] - h) ** 2).sum() / h.numel()  # type: ignore[index]
    if plus:
        written = written + beta * cross_entropies(by_hand(learner.module, labelled.obs["x"][0]), labelled.target[0]).mean()  # type: ignore[index]
    loss = der.extra_loss(learner, None)
    assert close(gradients(loss, learner.module), gradients(written, learner.module))
    assert not torch.equal(dark.obs["x"], labelled.obs["x"])


@KINDS
def test_in_control_der_plus_plus_adds_the_divergence_from_the_policy_of_the_rollout(recurrent: bool) -> None:
    learner, der = control_learner(recurrent), DERPlusPlus(0.6, 0.8, capacity=100, batch_size=8)
    learner.attach([der])
    train(learner, der, [0])
    away(learner)
    dark, other = foresee(der, learner, 8, 8)
    assert torch.equal(other.target, other.output)  # type: ignore[arg-type]
    (m, log_s), (m_now, log_s_now) = Gaussian(2).split(other.target), Gaussian(2).split(learner.outputs(other))  # type: ignore[arg-type]
    s, s_now = log_s.exp(), log_s_now.exp()
    kl = ((s_now / s).log() + (s**2 + (m - m_now) ** 2) / (2 * s_now**2) - 0.5).sum(-1).mean()
    written = 0.6 * ((dark.output - learner.outputs(dark)) ** 2).mean() + 0.8 * kl
    loss = der.extra_loss(learner, None)
    torch.testing.assert_close(loss, written, rtol=1e-4, atol=1e-6)
    assert close(gradients(loss, learner.module), gradients(written, learner.module), 1e-3, 1e-5)
    assert float(kl.detach()) > 1e-4


# ER-ACE


@settings(deadline=None, max_examples=30)
@given(
    sequence=st.lists(st.lists(st.integers(0, CLASSES - 1), min_size=1, max_size=4), min_size=1, max_size=6), strength=st.floats(0.1, 2.0)
)
def test_er_ace_moves_along_the_fresh_loss_over_its_own_and_unseen_classes_plus_the_stored_ones_over_all(
    sequence: list[list[int]], strength: float
) -> None:
    """The first batch is plain: what it does not show has never been seen."""
    ace = ERACE(strength, capacity=20, batch_size=4)
    learner = learner_of([ace])
    known: set[int] = set()
    for i, labels in enumerate(sequence):
        batch, before = examples(len(labels), seed=i, labels=labels), copy.deepcopy(learner.module)
        allowed = sorted(set(labels) | (set(range(CLASSES)) - known))
        z = by_hand(before, batch.obs["x"][0])
        fresh = (z[:, allowed].exp().sum(-1).log() - z[torch.arange(len(labels)), torch.tensor(labels)]).mean()
        twin = copy.deepcopy(ace)
        twin.observe(batch, learner)
        (drawn,) = foresee(twin, learner, 4)
        total = fresh + strength * cross_entropies(by_hand(before, drawn.obs["x"][0]), drawn.target[0]).mean()  # type: ignore[index]
        step(learner, batch)
        expected = [p.detach() - RATE * g for p, g in zip(before.parameters(), gradients(total, before), strict=True)]
        assert distance(weights(learner.module), expected) < 1e-9
        known |= set(labels)


def test_er_ace_leaves_the_first_batchs_loss_alone() -> None:
    ace, batch = ERACE(), examples(3, labels=[0, 1, 0])
    learner = learner_of([ace])
    assert ace.output_loss(learner, batch, learner.forward(batch)) is None
    assert ace.output_loss(learner, batch, learner.forward(batch)) is None, "nor the next, if it shows all that was seen"


@pytest.mark.parametrize("balanced", [False, True])
def test_in_a_stream_new_classes_do_not_push_old_ones_down(balanced: bool) -> None:
    """The last layer's biases of old classes get no gradient from fresh examples, of whatever softmax the plain loss is."""
    learner, ace = digit_learner(balanced), ERACE(1e-9, capacity=200)
    learner.attach([ace])
    train(learner, ace, [0])
    before = copy.deepcopy(learner.module.layers[-1].bias.detach())  # type: ignore[union-attr, index]
    train(learner, ace, [1])
    moved = (learner.module.layers[-1].bias.detach() - before).abs()  # type: ignore[union-attr, index]
    assert float(moved[:2].max()) < 1e-7
    assert float(moved[2:4].min()) > 1e-5
    assert balanced or float(moved[4:].min()) > 1e-5, "the unseen ones are there to be told apart from"


# MIR


@settings(deadline=None, max_examples=15)
@given(strength=st.floats(0.1, 2.0), lookahead=st.sampled_from([0.5, 1.0, 4.0]), groups=st.booleans(), seed=seeds)
def test_mir_rehearses_the_candidates_whose_loss_a_step_along_the_fresh_batch_would_raise_most(
    strength: float, lookahead: float, groups: bool, seed: int
) -> None:
    """The step is w - lr * lookahead * gradient, each group of weights at its own rate; it is not taken."""
    mir = MIR(strength, capacity=20, batch_size=3, candidates=9, lookahead=lookahead, seed=seed)
    learner = learner_of([mir], groups=groups)
    for i in range(4):
        mir.observe(examples(5, seed=seed + i), learner)
    fresh = examples(4, seed=seed + 9)
    learner.loss(fresh).backward()  # type: ignore[no-untyped-call]
    before, grads = weights(learner.module), [p.grad.clone() for p in learner.module.parameters()]  # type: ignore[union-attr]
    (candidates,) = foresee(mir, learner, 9)
    ahead = copy.deepcopy(learner.module)
    for p, g, rate in zip(ahead.parameters(), grads, [RATE, RATE, *([0.3] * 2 if groups else [RATE] * 2)], strict=True):
        p.data -= rate * lookahead * g
    x, y = candidates.obs["x"][0], candidates.target[0]  # type: ignore[index]
    losses = cross_entropies(by_hand(learner.module, x), y)
    rise = (cross_entropies(by_hand(ahead, x), y) - losses).detach()
    torch.testing.assert_close(mir.interference(learner, candidates), rise, rtol=1e-9, atol=1e-12)
    worst = sorted(range(9), key=lambda i: -float(rise[i]))[:3]
    loss = mir.extra_loss(learner, fresh)
    assert close(gradients(loss, learner.module), gradients(strength * losses[worst].mean(), learner.module))
    assert same(weights(learner.module), before)
    assert same([p.grad for p in learner.module.parameters()], grads)  # type: ignore[misc]


def test_mir_in_control_ranks_by_the_divergence_from_the_stored_policy() -> None:
    learner, mir = control_learner(), MIR(capacity=60, batch_size=4, candidates=16)
    learner.attach([mir])
    train(learner, mir, [0])
    away(learner)
    parameters = list(learner.module.parameters())
    rate = learner.optimizer.param_groups[0]["lr"]
    for p in parameters:
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    (candidates,) = foresee(mir, learner, 16)
    ahead = copy.deepcopy(learner.module)
    for p, own in zip(ahead.parameters(), parameters, strict=True):
        p.data -= rate * own.grad  # type: ignore[operator]
    then = candidates.target
    rise = [Gaussian(2).kl(then, learner.outputs(candidates, net)).sum(0).detach() for net in (ahead, learner.module)]  # type: ignore[arg-type]
    torch.testing.assert_close(mir.interference(learner, candidates), rise[0] - rise[1], rtol=1e-3, atol=1e-5)


def test_mir_lets_weights_stand_still_that_the_optimizer_does_not_have() -> None:
    """Only the last layer is trained, as where a loop of somebody else's keeps a backbone, its gradients computed or not."""
    mir = MIR(capacity=20, batch_size=3, candidates=9)
    learner = learner_of()
    learner.optimizer = torch.optim.SGD(learner.module.layers[-1].parameters(), lr=RATE)  # type: ignore[union-attr, index]
    learner.attach([mir])
    mir.observe(examples(12), learner)
    learner.loss(examples(4, seed=9)).backward()  # type: ignore[no-untyped-call]
    (candidates,) = foresee(mir, learner, 9)
    ahead = copy.deepcopy(learner.module)
    for p, own in zip(ahead.layers[-1].parameters(), learner.module.layers[-1].parameters(), strict=True):  # type: ignore[union-attr, index]
        p.data -= RATE * own.grad
    x, y = candidates.obs["x"][0], candidates.target[0]  # type: ignore[index]
    rise = cross_entropies(by_hand(ahead, x), y) - cross_entropies(by_hand(learner.module, x), y)
    torch.testing.assert_close(mir.interference(learner, candidates), rise.detach(), rtol=1e-9, atol=1e-12)


# CLEAR


@KINDS
def test_clear_clones_policy_and_value_as_they_were_when_the_experience_was_stored(recurrent: bool) -> None:
    """strength mean KL(stored || now) + value_strength mean (V - V_stored)^2, gradient included; stored numbers get none."""
    learner, watch, clear = control_learner(recurrent), Watch(), CLEAR(0.7, 0.3, capacity=100, batch_size=8)
    learner.attach([watch, clear])
    train(learner, clear, [0])
    seen, kept = watch.by_observation("sensor_0"), stored(clear, learner)
    for i in range(len(kept)):
        prediction, value = seen[kept.obs["sensor_0"][:, i].numpy().tobytes()]
        torch.testing.assert_close(kept.target[:, i], prediction)  # type: ignore[index]
        torch.testing.assert_close(kept.value[:, i], value)  # type: ignore[index]
    away(learner)
    (drawn,) = foresee(clear, learner, 8)
    now = learner.forward(drawn)
    (m, log_s), (m_now, log_s_now) = Gaussian(2).split(drawn.target), Gaussian(2).split(now.prediction)  # type: ignore[arg-type]
    s, s_now = log_s.exp(), log_s_now.exp()
    kl = ((s_now / s).log() + (s**2 + (m - m_now) ** 2) / (2 * s_now**2) - 0.5).sum(-1).mean()
    written = 0.7 * kl + 0.3 * ((now.value - drawn.value) ** 2).mean()  # type: ignore[operator]
    loss = clear.extra_loss(learner, None)
    torch.testing.assert_close(loss, written, rtol=1e-4, atol=1e-6)
    found = gradients(loss, learner.module)
    assert close(found, gradients(written, learner.module), 1e-3, 1e-5)
    value_head = [i for i, (name, _) in enumerate(learner.module.named_parameters()) if name.startswith("value")]
    assert all(found[i].abs().max() > 1e-4 for i in value_head)
    assert not drawn.target.requires_grad  # type: ignore[union-attr]
    assert not drawn.value.requires_grad  # type: ignore[union-attr]


def test_without_a_value_strength_clear_clones_the_policy_alone() -> None:
    learner, clear = control_learner(), CLEAR(0.7, 0.0, capacity=100, batch_size=8)
    learner.attach([clear])
    train(learner, clear, [0])
    away(learner)
    found = gradients(clear.extra_loss(learner, None), learner.module)
    for (name, _), g in zip(learner.module.named_parameters(), found, strict=True):
        assert not name.startswith("value") or not g.any()


# GDumb


def dumb_learner(gdumb: GDumb, tasks: Sequence[int] = (0, 1)) -> Untold:
    """Stores two tasks' examples while nothing is learned."""
    learner = learner_of([gdumb])
    for task in tasks:
        gdumb.begin_task(Named(task), learner)
        for i in range(3):
            step(learner, examples(6, task, seed=10 * task + i))
    return learner


def test_nothing_is_learned_from_the_stream_whatever_the_optimizer() -> None:
    for make in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW):
        gdumb = GDumb(epochs=2, capacity=12)
        learner = learner_of()
        learner.optimizer = make(learner.module.parameters(), lr=0.1, weight_decay=0.1)
        learner.attach([gdumb])
        for task in (0, 1):
            start = weights(learner.module)
            gdumb.begin_task(Named(task), learner)
            for i in range(3):
                step(learner, examples(6, task, seed=i))
            assert same(weights(learner.module), start)
            gdumb.end_task(Named(task), learner, [])
            assert not same(weights(learner.module), start)


def test_the_weights_at_a_tasks_end_depend_on_the_memory_and_the_first_weights_alone() -> None:
    """Whatever the network, its gradients and the optimizer were led to in between."""
    ends = []
    for led_astray in (False, True):
        gdumb = GDumb(epochs=3, capacity=12, batch_size=4)
        learner = dumb_learner(gdumb)
        if led_astray:
            perturb(learner.module, 5, 3.0)
            for p in learner.module.parameters():
                p.grad = torch.full_like(p, 7.0)
            learner.optimizer.step()
        gdumb.end_task(Named(1), learner, [])
        ends.append(weights(learner.module))
    assert same(*ends)


def test_it_is_momentum_descent_on_shuffled_passes_over_the_memory_at_a_cosines_rate() -> None:
    """v <- 0.9 v + g + 1e-6 w, |g| <= 10; w <- w - rate v; rate_t = r / 100 + (r - r / 100) (1 + cos(pi t / steps)) / 2."""
    gdumb = GDumb(epochs=3, capacity=10, batch_size=4, learning_rate=0.3)
    learner, module = dumb_learner(gdumb), learner_of().module
    rng, t, steps = copy.deepcopy(gdumb.memory.rng), 0, 3 * 3
    velocity = [torch.zeros_like(p) for p in module.parameters()]
    kept = stored(gdumb, learner)
    for _ in range(3):
        for rows in np.array_split(rng.permutation(10), 3):
            x, y = kept.obs["x"][0][rows], kept.target[0][rows]  # type: ignore[index]
            grads = gradients(cross_entropies(by_hand(module, x), y).mean(), module)
            norm = math.sqrt(sum(float((g**2).sum()) for g in grads))
            rate = 0.003 + 0.297 * (1 + math.cos(math.pi * t / steps)) / 2
            for p, v, g in zip(module.parameters(), velocity, grads, strict=True):
                v.mul_(0.9).add_(g * min(1.0, 10.0 / norm) + 1e-6 * p.detach())
                p.data -= rate * v
            t += 1
    gdumb.end_task(Named(1), learner, [])
    assert distance(weights(learner.module), weights(module)) < 1e-9


class Moody(nn.Module):
    """Notes in which mode it is learned from."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.modes = nn.Linear(INPUTS, CLASSES), set[bool]()

    def forward(self, x: Tensor) -> Tensor:
        self.modes |= {self.training} if torch.is_grad_enabled() else set()
        return self.linear(x)


def test_in_a_loop_of_somebody_elses_it_trains_in_training_mode_as_in_ours() -> None:
    """Else batch norm would stay at the statistics of an untrained network."""
    module, batch = Moody(), examples(12)
    loop = attach([GDumb(epochs=2)], module, torch.optim.SGD(module.parameters(), lr=0.1))
    loop.begin_task(0)
    x, y = batch.obs["x"][0].float(), batch.target[0]  # type: ignore[index]
    loop.observe(x, y)
    loop.end_task([(x, y)])
    assert module.modes == {True}
    assert module.training


def test_the_examples_that_are_kept_are_a_share_of_each_class() -> None:
    gdumb = GDumb(capacity=10)
    learner = learner_of([gdumb])
    gdumb.observe(examples(30, labels=[0] * 20 + [1] * 8 + [2] * 2), learner)
    assert torch.bincount(stored(gdumb, learner).target[0]).tolist() == [4, 4, 2]  # type: ignore[index]


# iCaRL


def features_by_hand(module: Any, x: Tensor) -> Tensor:
    phi = torch.tanh(x @ module.layers[0].weight.T + module.layers[0].bias)
    return (phi / phi.norm(dim=1, keepdim=True)).detach()


def herd(phi: Tensor, count: int) -> list[int]:
    """Each next exemplar makes the mean of those picked the nearest to the mean of all."""
    picked: list[int] = []
    for _ in range(count):
        left = [i for i in range(len(phi)) if i not in picked]
        picked.append(min(left, key=lambda i: float((phi[[*picked, i]].mean(0) - phi.mean(0)).norm())))
    return picked


class Increments:
    """Two tasks of two classes each, learned by iCaRL; what it should know of them, worked out beside it."""

    def __init__(self, strength: float = 1.0, capacity: int = 9) -> None:
        self.icarl = ICaRL(strength, capacity, batch_size=5)
        self.learner, self.exemplars = learner_of([self.icarl]), dict[int, Tensor]()
        for task, labels in enumerate(([3, 0], [1, 4])):
            self.icarl.begin_task(Named(task), self.learner)
            for i in range(3):
                step(self.learner, examples(8, task, seed=10 * task + i, labels=labels * 4))
            self.end_task(task, labels)

    def end_task(self, task: int, labels: list[int]) -> None:
        brought = [examples(6, task, seed=100 * task + i, labels=labels * 3) for i in range(2)]
        self.old = copy.deepcopy(self.learner.module)
        x, y = (torch.cat([b.obs["x"][0] for b in brought]), torch.cat([b.target[0] for b in brought]))  # type: ignore[index]
        share = self.icarl.capacity // (len(self.exemplars) + len(labels))
        self.exemplars = {label: chosen[:share] for label, chosen in self.exemplars.items()}
        for label in labels:
            mine = x[y == label]
            self.exemplars[label] = mine[herd(features_by_hand(self.old, mine), min(share, len(mine)))]
        self.icarl.end_task(Named(task), self.learner, brought)


@pytest.mark.parametrize("capacity", [4, 9, 40])
def test_exemplars_are_those_of_herding_and_every_class_has_the_same_share(capacity: int) -> None:
    """capacity / classes of each; when new classes come, the best of the old ones stay."""
    made = Increments(capacity=capacity)
    assert set(made.icarl.rows) == set(made.exemplars) == {0, 1, 3, 4}
    for label, rows in made.icarl.rows.items():
        items = made.icarl.store.read(np.array(rows))
        np.testing.assert_array_equal(items["obs.x"][:, 0], made.exemplars[label].numpy())
        assert set(items["target"].flatten().tolist()) == {label}
        assert len(rows) == min(6, capacity // 4)
    taken = [row for rows in made.icarl.rows.values() for row in rows]
    assert len(set(taken)) == len(taken) <= capacity


def test_under_its_view_the_nearest_mean_of_exemplars_answers() -> None:
    """Means of normalised features, normalised again; classes of no exemplar are never guessed; afterwards all is as it was."""
    made = Increments()
    x = examples(200, seed=77).obs["x"]
    batch = examples(200, seed=77)
    usual = made.learner.outputs(batch)
    with made.icarl.view(Named(), made.learner):
        guesses = made.learner.outputs(batch).argmax(-1)[0]
    assert torch.equal(made.learner.outputs(batch), usual)
    assert torch.equal(usual[0], by_hand(made.learner.module, x[0]))
    phi, labels = features_by_hand(made.learner.module, x[0]), sorted(made.exemplars)
    means = torch.stack([features_by_hand(made.learner.module, made.exemplars[label]).mean(0) for label in labels])
    distances = torch.stack([(phi - mean / mean.norm()).norm(dim=1) for mean in means], 1)
    assert guesses.tolist() == [labels[i] for i in distances.argmin(1).tolist()]
    assert set(guesses.tolist()) == set(labels)


def test_before_the_first_tasks_end_its_view_changes_nothing() -> None:
    icarl, batch = ICaRL(), examples(9)
    learner = learner_of([icarl])
    with icarl.view(Named(), learner):
        seen = learner.outputs(batch)
    assert torch.equal(seen, learner.outputs(batch))


@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_icarl_moves_along_its_binary_cross_entropies_of_fresh_examples_and_exemplars(strength: float) -> None:
    """-sum_c t log s(z_c) + (1 - t) log(1 - s(z_c)), t = s(z*_c) for classes of ended tasks, else whether c is the label."""
    made = Increments(strength)
    icarl, learner, old = made.icarl, made.learner, made.old
    perturb(learner.module, 4, 0.2)
    before, batch = copy.deepcopy(learner.module), examples(6, 2, seed=5, labels=[2, 2, 2, 0, 2, 1])
    rows = np.concatenate([np.array(r) for r in icarl.rows.values()])
    drawn = icarl.store.read(rows[copy.deepcopy(icarl.rng).integers(0, len(rows), 5)])

    def written(x: Tensor, y: Tensor) -> Tensor:
        s, s_old = torch.sigmoid(by_hand(before, x)), torch.sigmoid(by_hand(old, x)).detach()
        total = torch.zeros(len(x), dtype=torch.float64)
        for c in range(CLASSES):
            t = s_old[:, c] if c in made.exemplars else (y == c).double()
            total = total - t * s[:, c].log() - (1 - t) * (1 - s[:, c]).log()
        return total.mean()

    x, y = batch.obs["x"][0], batch.target[0]  # type: ignore[index]
    stored_x, stored_y = torch.from_numpy(drawn["obs.x"][:, 0]), torch.from_numpy(drawn["target"][:, 0])
    total = strength * (written(x, y) + written(stored_x, stored_y)) + (1 - strength) * cross_entropies(by_hand(before, x), y).mean()
    step(learner, batch)
    expected = [p.detach() - RATE * g for p, g in zip(before.parameters(), gradients(total, before), strict=True)]
    assert distance(weights(learner.module), expected) < 1e-9


def test_at_strength_1_icarls_losses_are_all_whatever_the_plain_loss_is() -> None:
    ends = []
    for balanced in (False, True):
        learner, icarl = digit_learner(balanced), ICaRL(capacity=20, batch_size=4)
        learner.attach([icarl])
        for task in (0, 1):
            learner.learn([task], 64, ignore)
            icarl.end_task(learner.world.tasks[task], learner, [learner.rollout(stream(), [task], 4, seed=task)])
        ends.append(weights(learner.module))
    assert distance(*ends) < 1e-12


def test_in_its_first_task_icarl_learns_the_labels_alone() -> None:
    icarl = ICaRL()
    learner = learner_of([icarl])
    before, batch = copy.deepcopy(learner.module), examples(6)
    s, t = torch.sigmoid(by_hand(before, batch.obs["x"][0])), F.one_hot(batch.target[0], CLASSES)  # type: ignore[index]
    total = -(t * s.log() + (1 - t) * (1 - s).log()).sum(1).mean()
    step(learner, batch)
    expected = [p.detach() - RATE * g for p, g in zip(before.parameters(), gradients(total, before), strict=True)]
    assert distance(weights(learner.module), expected) < 1e-9


def test_more_classes_than_exemplars_are_refused_by_name_and_value() -> None:
    icarl = ICaRL(capacity=2)
    learner = learner_of([icarl])
    with pytest.raises(ValueError, match=r"^capacity is 2, allowed: 3 or more$"):
        icarl.end_task(Named(), learner, [examples(6, labels=[0, 1, 2] * 2)])


# what cannot work

MEMORIES_OF = {"class-balanced": "ClassBalanced", "uncertain": "Uncertain", "informative": "Informative"}
REHEARSALS = [Replay, DER, DERPlusPlus, MIR, AGEM, GEM, CLEAR]


@pytest.mark.parametrize("kind", REHEARSALS)
@pytest.mark.parametrize("memory", MEMORIES_OF)
def test_memories_that_need_classes_are_refused_where_there_are_none(kind: Callable[..., Strategy], memory: str) -> None:
    learner = control_learner()
    name = MEMORIES_OF[memory]
    with pytest.raises(ValueError, match=f"^memory is {name}, which needs labels, allowed where there are none: reservoir, ring$"):
        learner.attach([kind(memory=memory)])
    if kind is CLEAR:
        return
    tags = FixedLearner(FlatNet(nn.Linear(2, 6), "x"), Tags(2, 3))
    with pytest.raises(ValueError, match=f"^memory is {name}, which needs one class an example, allowed here: reservoir, ring$"):
        tags.attach([kind(memory=memory)])


@pytest.mark.parametrize("kind", [ERACE, GDumb, ICaRL])
def test_strategies_of_single_classes_are_refused_for_tags(kind: Callable[..., Strategy]) -> None:
    with pytest.raises(ValueError, match=r"needs a class for each example, allowed here: (replay, derpp|memory reservoir)$"):
        FixedLearner(FlatNet(nn.Linear(2, 6), "x"), Tags(2, 3)).attach([kind()])


CASES: list[tuple[Callable[..., Strategy], dict[str, Any]]] = [
    (kind, bad)
    for kind, only in (
        (Replay, {}),
        (DER, {}),
        (DERPlusPlus, {"label_strength": [-0.1, float("nan"), float("inf")]}),
        (ERACE, {}),
        (MIR, {"candidates": [63, 0, -1], "lookahead": [-0.1, float("nan"), float("inf")]}),
        (CLEAR, {"value_strength": [-0.1, float("nan"), float("inf")]}),
        (GDumb, {"epochs": [-1], "learning_rate": [0.0, -0.1, float("nan"), float("inf")]}),
        (ICaRL, {"strength": [1.1]}),
    )
    for bad in keyword_grid(**({} if kind is GDumb else {"strength": [-0.5, float("nan"), float("inf")]}))
    + keyword_grid(capacity=[0, -3], batch_size=[0, -2], **({} if kind is ICaRL else {"memory": ["all", ""]}))
    + keyword_grid(**only)
]


@pytest.mark.parametrize(("kind", "bad"), CASES, ids=lambda x: getattr(x, "__name__", str(x)))
def test_settings_that_cannot_be_are_refused_by_name_and_value(kind: Callable[..., Strategy], bad: dict[str, Any]) -> None:
    ((name, value),) = bad.items()
    with pytest.raises(ValueError, match=f"^{name} is {value!r}, allowed: "):
        kind(**bad)
