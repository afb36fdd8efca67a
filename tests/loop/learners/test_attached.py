"""Strategies in a loop that is not ours do what they do in ours."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from contract_helpers import CONTROL_ONLY, NETWORKS, STREAM, TOLD_ONLY, active
from loop_helpers import LateReplay, distance, mlp, same, stream, weights
from torch import Tensor, nn

from everloop.loop import (
    DER,
    EWC,
    L2,
    MAS,
    Attached,
    Batch,
    Forward,
    Learner,
    LoRA,
    LwF,
    NotFiniteError,
    Replay,
    Strategy,
    attach,
)

REFUSED = TOLD_ONLY | CONTROL_ONLY | set(NETWORKS)
NAMES = sorted(set(STREAM) - REFUSED)
Examples = tuple[Tensor, Tensor]


class ExampleRecorder(Strategy):
    """Notes what is learned from, and what a task's end brings."""

    def __init__(self) -> None:
        self.batches: list[list[Examples]] = []
        self.ends: list[list[Examples]] = []

    def begin_task(self, task: Any, learner: Learner) -> None:
        self.batches.append([])

    def observe(self, batch: Batch, learner: Learner) -> None:
        assert batch.target is not None
        self.batches[-1].append((batch.obs["image"][0].double() / 255, batch.target[0]))

    def end_task(self, task: Any, batches: Any, learner: Learner) -> None:
        self.ends.append(
            [(batch.obs["image"][0].double() / 255, batch.target[0]) for batch in batches]
        )


class Pixels(nn.Module):
    """`layers` on images, from 0 to 1 whatever type they come in, as a foreign module has them."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layers(x)
        return result


def our_loop(strategy: Strategy, sgd: bool) -> tuple[list[Tensor], ExampleRecorder]:
    module, recorder = mlp(hidden=12), ExampleRecorder()
    learner = LateReplay(module, stream(), optimizer=optimizer_of(module, sgd))
    learner.attach([strategy, recorder])
    for task in range(3):
        for s in (strategy, recorder):
            s.begin_task(learner.world.tasks[task], learner)
        learner.learn([task], 64)
        batch = learner.rollout(stream(), [task], 8, seed=task)
        with learner.evaluating():
            for s in (strategy, recorder):
                s.end_task(learner.world.tasks[task], [batch], learner)
    return weights(module), recorder


def optimizer_of(module: nn.Module, sgd: bool) -> torch.optim.Optimizer:
    return (
        torch.optim.SGD(module.parameters(), lr=0.05)
        if sgd
        else torch.optim.Adam(module.parameters(), lr=1e-2)
    )


def foreign_loop(
    strategy: Strategy, sgd: bool, told: ExampleRecorder, step: Callable[..., None]
) -> list[Tensor]:
    module = Pixels(mlp(hidden=12).layers)
    optimizer = optimizer_of(module, sgd)
    loop = attach([strategy], module, optimizer)
    for task, (batches, end) in enumerate(zip(told.batches, told.ends, strict=True)):
        loop.begin_task(task)
        for x, y in batches:
            loop.observe(x, y)
            step(module, optimizer, x, y)
        loop.end_task(end)
    return weights(module)


def by_steps(module: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    optimizer.zero_grad()
    nn.functional.cross_entropy(module(x), y).backward()
    optimizer.step()


def by_closure(module: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    """As Lightning does it."""

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(module(x), y)
        loss.backward()
        return loss

    optimizer.step(closure)


@pytest.mark.parametrize("sgd", [True, False], ids=["sgd", "adam"])
@pytest.mark.parametrize("name", NAMES)
def test_a_hand_written_loop_ends_at_the_same_weights_as_our_learner(name: str, sgd: bool) -> None:
    """The same network, the same batches; in ours images are bytes, so stored examples are the same
    numbers too.
    """
    ours, told = our_loop(active(name), sgd)
    theirs = foreign_loop(active(name), sgd, told, by_steps)
    assert distance(theirs, ours) < 1e-6


@pytest.mark.parametrize("name", ["ewc", "replay", "lwf", "agem", "si"])
def test_a_closure_given_to_the_optimizer_makes_no_difference(name: str) -> None:
    _, told = our_loop(ExampleRecorder(), True)
    assert same(
        foreign_loop(active(name), False, told, by_closure),
        foreign_loop(active(name), False, told, by_steps),
    )


def small(seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer, Tensor, Tensor]:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    return (
        module,
        torch.optim.SGD(module.parameters(), lr=0.1),
        torch.randn(8, 4),
        torch.randint(3, (8,)),
    )


def test_a_detached_loop_is_plain_again_and_an_unattached_copy_always_was() -> None:
    module, optimizer, x, y = small()
    loop = attach([EWC(100.0), LwF()], module, optimizer)
    loop.begin_task(0)
    loop.observe(x, y)
    by_steps(module, optimizer, x, y)
    loop.end_task([(x, y)])
    copied = loop.frozen_copy()
    assert not copied._forward_hooks
    assert not copied._forward_pre_hooks
    loop.begin_task(1)
    loop.detach()
    plain = copy.deepcopy(module)
    plain_optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    by_steps(module, optimizer, x, y)
    by_steps(plain, plain_optimizer, x, y)
    assert same(weights(module), weights(plain))


def test_a_module_that_is_called_with_its_labels_observes_by_itself_in_training_only() -> None:
    class Labelled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(
            self, inputs: Tensor, labels: Tensor | None = None, count: Tensor | None = None
        ) -> Any:
            logits: Tensor = self.layer(inputs)
            return logits

    torch.manual_seed(0)
    module, x, y = Labelled(), torch.randn(5, 4), torch.randint(3, (5,))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    replay = Replay(capacity=100, batch_size=2, current=True)
    loop = attach([replay], module, optimizer, label_name="labels")
    loop.begin_task(0)
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(inputs=x, labels=y, count=torch.tensor(5)), y).backward()
        optimizer.step()
    assert len(replay.memory) == 10
    assert set(replay.memory.items) == {"obs.inputs", "start", "target", "task"}
    module.eval()
    module(inputs=x, labels=y)
    with torch.no_grad():
        module.train()(inputs=x, labels=y)
    assert len(replay.memory) == 10


def test_a_restored_state_goes_on_bit_for_bit() -> None:
    def final(restore: bool) -> list[Tensor]:
        module, optimizer, x, y = small()
        loop = attach([EWC(10.0), Replay(capacity=20, batch_size=4)], module, optimizer)
        loop.begin_task(0)
        for _ in range(5):
            loop.observe(x, y)
            by_steps(module, optimizer, x, y)
        loop.end_task([(x, y)])
        if restore:
            state = copy.deepcopy(loop.state_dict())
            loop.detach()
            loop = attach(
                [EWC(10.0, seed=9), Replay(capacity=20, batch_size=4, seed=9)], module, optimizer
            )
            loop.load_state_dict(state)
        loop.begin_task(1)
        for _ in range(5):
            loop.observe(x + 1, y)
            by_steps(module, optimizer, x + 1, y)
        loop.end_task([(x + 1, y)])
        return weights(module)

    assert same(final(True), final(False))


def test_states_find_their_strategies_by_name_whatever_the_order() -> None:
    def trained(strategies: list[Strategy]) -> Attached:
        module, optimizer, x, y = small()
        loop = attach(strategies, module, optimizer)
        loop.begin_task(0)
        loop.observe(x, y)
        by_steps(module, optimizer, x, y)
        loop.end_task([(x, y)])
        return loop

    first, second, other, last = L2(3.0), L2(1.0), L2(1.0), MAS()
    state = trained([first, MAS(), second]).state_dict()
    module, optimizer, *_ = small(1)
    attach([last, other, L2(3.0)], module, optimizer).load_state_dict(state)
    assert other.state_dict().keys() == first.state_dict().keys()
    assert same(list(other.penalty.anchor.values()), list(first.penalty.anchor.values()))
    assert last.penalty.precision.keys() == first.penalty.anchor.keys()


def test_a_restored_state_gives_a_module_made_anew_its_adapters_back() -> None:
    def final(anew: bool) -> list[Tensor]:
        module, optimizer, x, y = small()
        loop = attach([LoRA(rank=2, adapters="online")], module, optimizer)
        for task in range(2):
            loop.begin_task(task)
            loop.observe(x + task, y)
            by_steps(module, optimizer, x + task, y)
            loop.end_task([(x + task, y)])
        loop.begin_task(2)
        loop.observe(x + 2, y)
        by_steps(module, optimizer, x + 2, y)
        if anew:
            states = copy.deepcopy((loop.state_dict(), module.state_dict(), optimizer.state_dict()))
            by_steps(module, optimizer, x, y)
            module, optimizer, *_ = small()
            loop = attach([LoRA(rank=2, adapters="online")], module, optimizer)
            loop.load_state_dict(states[0])
            module.load_state_dict(states[1])
            optimizer.load_state_dict(states[2])
        for _ in range(3):
            loop.observe(x + 2, y)
            by_steps(module, optimizer, x + 2, y)
        loop.end_task([(x + 2, y)])
        return weights(module)

    assert same(final(True), final(False))


def test_outputs_that_are_stored_leave_no_trace_in_the_network() -> None:
    """They are those that the loop's own forward pass is about to give, with its dropout and the
    batch's own statistics.
    """
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3))
    der = DER(capacity=8, batch_size=4)
    loop = attach([der], module, torch.optim.SGD(module.parameters(), lr=0.1))
    x, y = torch.randn(8, 4), torch.randint(3, (8,))
    before, drawn = (
        {name: buffer.clone() for name, buffer in module.named_buffers()},
        torch.get_rng_state(),
    )
    loop.begin_task(0)
    loop.observe(x, y)
    assert all(torch.equal(buffer, before[name]) for name, buffer in module.named_buffers())
    assert torch.equal(torch.get_rng_state(), drawn)
    stored = der.read(np.arange(8), loop)
    assert stored.output is not None
    assert torch.equal(stored.output[0], module(stored.obs["input"][0]))


class Decay(Strategy):
    def loss(
        self, fresh: Forward | None, replayed: Forward | None, learner: Learner
    ) -> Tensor | None:
        assert fresh is not None
        return 0.5 * torch.stack([(w**2).sum() for w in learner.weights().values()]).sum()


@pytest.mark.parametrize("scale", [1.0, 64.0])
def test_a_loss_of_the_weights_alone_is_added_to_the_loops_own(scale: float) -> None:
    module, optimizer, x, y = small()
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    loop = attach([Decay()], module, optimizer, scaler=scaler)
    before = weights(module)
    own = torch.autograd.grad(nn.functional.cross_entropy(module(x), y), list(module.parameters()))
    loop.begin_task(0)
    loop.observe(x, y)
    scaler.scale(nn.functional.cross_entropy(module(x), y)).backward()
    scaler.step(optimizer)
    expected = [w - 0.1 * (g + w) for w, g in zip(before, own, strict=True)]
    assert distance(weights(module), expected) < 1e-6


def test_the_gradient_is_clipped_after_the_strategies() -> None:
    module, optimizer, x, y = small()
    loop = attach([EWC(1e4)], module, optimizer, max_grad_norm=0.5)
    loop.begin_task(0)
    loop.observe(x, y)
    by_steps(module, optimizer, x, y)
    loop.end_task([(x, y)])
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.1)
    before = weights(module)
    loop.begin_task(1)
    loop.observe(x, y)
    by_steps(module, optimizer, x, y)
    moved = torch.cat([(a - b).flatten() for a, b in zip(before, weights(module), strict=True)])
    assert float(moved.norm()) == pytest.approx(0.1 * 0.5, rel=1e-4)


def test_weights_of_a_late_group_are_clipped_and_checked_too() -> None:
    module, optimizer, x, y = small()
    late = nn.Parameter(torch.ones(3))
    loop = attach([EWC(1.0)], module, optimizer, max_grad_norm=1.0)
    loop.begin_task(0)
    loop.observe(x, y)
    optimizer.add_param_group({"params": [late]})
    for value, size in ((1e6, pytest.approx(1.0, rel=1e-3)), (float("nan"), None)):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(x), y).backward()
        late.grad = torch.full((3,), value)
        if size is None:
            with pytest.raises(NotFiniteError, match="gradient's norm is nan"):
                optimizer.step()
        else:
            optimizer.step()
            assert float(late.grad.norm()) == size


def test_another_optimizer_can_take_over() -> None:
    module, optimizer, x, y = small()
    ewc = EWC(50.0)
    loop = attach([ewc], module, optimizer)
    loop.begin_task(0)
    loop.observe(x, y)
    by_steps(module, optimizer, x, y)
    loop.end_task([(x, y)])
    second = torch.optim.SGD(module.parameters(), lr=0.1)
    loop.move_to(second)
    loop.begin_task(1)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(1.0)
    twin = copy.deepcopy(module)
    for hooks in (twin._forward_hooks, twin._forward_pre_hooks):
        hooks.clear()
    loop.observe(x, y)
    by_steps(module, second, x, y)
    nn.functional.cross_entropy(twin(x), y).backward()
    pulls = zip(
        twin.parameters(), ewc.penalty.precision.values(), ewc.penalty.anchor.values(), strict=True
    )
    expected = [p.detach() - 0.1 * (p.grad + 50.0 * P * (p.detach() - c)) for p, P, c in pulls]
    assert distance(weights(module), expected) < 1e-6


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_cannot_work_is_refused_before_anything_is_touched(name: str) -> None:
    module, optimizer, _, _ = small()
    with pytest.raises(ValueError, match=r"use |give |needs "):
        attach([active(name)], module, optimizer)
    assert not optimizer._optimizer_step_pre_hooks
    assert not module._forward_hooks


def test_mistakes_are_named() -> None:
    module, optimizer, x, y = small()
    loop = attach([EWC()], module, optimizer)
    with pytest.raises(RuntimeError, match="outside of a task; call begin_task first"):
        loop.observe(x, y)
    with pytest.raises(RuntimeError, match="end_task was called before begin_task"):
        loop.end_task([(x, y)])
    loop.begin_task(0)
    with pytest.raises(ValueError, match="end_task got no examples"):
        loop.end_task([])
    with pytest.raises(ValueError, match="strategies si, ewc; attach them instead of ewc"):
        loop.load_state_dict({"strategies": {"si": {}, "ewc": {}}, "steps": 0, "task": None})
    with pytest.raises(ValueError, match="the network has no linear layer"):
        attach([], nn.Conv2d(1, 1, 1), torch.optim.SGD(nn.Conv2d(1, 1, 1).parameters(), lr=0.1))
    assert isinstance(loop, Attached)
