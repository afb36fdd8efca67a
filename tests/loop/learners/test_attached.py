"""Strategies attached to a hand-written training loop work as with our learner."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from attached_helpers import make_small, plain_step
from contract_helpers import active
from loop_helpers import LateReplay, distance, mlp, same, stream, weights
from torch import Tensor, nn

from everloop.loop import (
    DER,
    EWC,
    L2,
    MAS,
    STRATEGIES,
    Attached,
    Batch,
    Learner,
    LoRA,
    LwF,
    Replay,
    Strategy,
    attach,
)

TRAITS = {name: strategy.traits for name, strategy in STRATEGIES.items()}
REFUSED = sorted(name for name, t in TRAITS.items() if t.task_id or t.network or not t.streams)
SUPPORTED = sorted(set(STRATEGIES) - set(REFUSED))
Examples = tuple[Tensor, Tensor]


class ExampleRecorder(Strategy):
    """Records the training batches and the examples at the end of each task."""

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


class PlainModule(nn.Module):
    """Applies `layers` to images from 0 to 1, without the call signature of our networks."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layers(x)
        return result


def train_learner(strategy: Strategy, sgd: bool) -> tuple[list[Tensor], ExampleRecorder]:
    module, recorder = mlp(hidden=12), ExampleRecorder()
    learner = LateReplay(module, stream(), optimizer=optimizer_of(module, sgd))
    learner.attach([recorder, strategy])
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


def train_attached(
    strategy: Strategy, sgd: bool, recorder: ExampleRecorder, step: Callable[..., None]
) -> list[Tensor]:
    module = PlainModule(mlp(hidden=12).layers)
    optimizer = optimizer_of(module, sgd)
    loop = attach([strategy], module, optimizer)
    for task, (batches, end) in enumerate(zip(recorder.batches, recorder.ends, strict=True)):
        loop.begin_task(task)
        for x, y in batches:
            loop.observe(x, y)
            step(module, optimizer, x, y)
        loop.end_task(end)
    return weights(module)


def closure_step(module: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    """A step with a closure, as Lightning takes it."""

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(module(x), y)
        loss.backward()
        return loss

    optimizer.step(closure)


@pytest.mark.parametrize("sgd", [True, False], ids=["sgd", "adam"])
@pytest.mark.parametrize("name", SUPPORTED)
def test_a_hand_written_loop_gives_the_same_weights_as_our_learner(name: str, sgd: bool) -> None:
    """Both get the same batches.

    Our learner stores images as bytes, which represent these images exactly.
    """
    ours, recorder = train_learner(active(name), sgd)
    theirs = train_attached(active(name), sgd, recorder, plain_step)
    assert distance(theirs, ours) < 1e-6


@pytest.mark.parametrize("name", ["ewc", "replay", "lwf", "agem", "si"])
def test_a_step_with_a_closure_gives_the_same_weights(name: str) -> None:
    _, recorder = train_learner(ExampleRecorder(), True)
    assert same(
        train_attached(active(name), False, recorder, closure_step),
        train_attached(active(name), False, recorder, plain_step),
    )


def test_frozen_copies_and_detached_modules_have_no_hooks() -> None:
    module, optimizer, x, y = make_small()
    loop = attach([EWC(100.0), LwF()], module, optimizer)
    loop.begin_task(0)
    loop.observe(x, y)
    plain_step(module, optimizer, x, y)
    loop.end_task([(x, y)])
    copied = loop.frozen_copy()
    assert not copied._forward_hooks
    assert not copied._forward_pre_hooks
    loop.begin_task(1)
    loop.detach()
    plain = copy.deepcopy(module)
    plain_optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    plain_step(module, optimizer, x, y)
    plain_step(plain, plain_optimizer, x, y)
    assert same(weights(module), weights(plain))


def test_calls_with_labels_are_observed_in_training_only() -> None:
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
    module = Labelled()
    x = torch.randn(5, 4)
    y = torch.randint(3, (5,))
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


def test_a_restored_state_continues_bit_for_bit() -> None:
    def final(restore: bool) -> list[Tensor]:
        module, optimizer, x, y = make_small()
        loop = attach([EWC(10.0), Replay(capacity=20, batch_size=4)], module, optimizer)
        loop.begin_task(0)
        for _ in range(5):
            loop.observe(x, y)
            plain_step(module, optimizer, x, y)
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
            plain_step(module, optimizer, x + 1, y)
        loop.end_task([(x + 1, y)])
        return weights(module)

    assert same(final(True), final(False))


def test_states_are_matched_to_strategies_by_name_and_order() -> None:
    def trained(strategies: list[Strategy]) -> Attached:
        module, optimizer, x, y = make_small()
        loop = attach(strategies, module, optimizer)
        loop.begin_task(0)
        loop.observe(x, y)
        plain_step(module, optimizer, x, y)
        loop.end_task([(x, y)])
        return loop

    first, second = L2(3.0), L2(1.0)
    other, last = L2(1.0), MAS()
    state = trained([first, MAS(), second]).state_dict()
    module, optimizer, *_ = make_small(1)
    attach([last, other, L2(3.0)], module, optimizer).load_state_dict(state)
    assert other.state_dict().keys() == first.state_dict().keys()
    assert same(list(other.penalty.anchor.values()), list(first.penalty.anchor.values()))
    assert last.penalty.precision.keys() == first.penalty.anchor.keys()


def test_a_restored_state_rebuilds_adapters_in_a_new_module() -> None:
    def final(rebuild: bool) -> list[Tensor]:
        module, optimizer, x, y = make_small()
        loop = attach([LoRA(rank=2, adapters="online")], module, optimizer)
        for task in range(2):
            loop.begin_task(task)
            loop.observe(x + task, y)
            plain_step(module, optimizer, x + task, y)
            loop.end_task([(x + task, y)])
        loop.begin_task(2)
        loop.observe(x + 2, y)
        plain_step(module, optimizer, x + 2, y)
        if rebuild:
            states = copy.deepcopy((loop.state_dict(), module.state_dict(), optimizer.state_dict()))
            plain_step(module, optimizer, x, y)
            module, optimizer, *_ = make_small()
            loop = attach([LoRA(rank=2, adapters="online")], module, optimizer)
            loop.load_state_dict(states[0])
            module.load_state_dict(states[1])
            optimizer.load_state_dict(states[2])
        for _ in range(3):
            loop.observe(x + 2, y)
            plain_step(module, optimizer, x + 2, y)
        loop.end_task([(x + 2, y)])
        return weights(module)

    assert same(final(True), final(False))


def test_storing_outputs_does_not_change_the_network() -> None:
    """The stored outputs equal those of the loop's next forward pass, including dropout."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3))
    der = DER(capacity=8, batch_size=4)
    loop = attach([der], module, torch.optim.SGD(module.parameters(), lr=0.1))
    x, y = torch.randn(8, 4), torch.randint(3, (8,))
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    rng_state = torch.get_rng_state()
    loop.begin_task(0)
    loop.observe(x, y)
    assert all(torch.equal(buffer, before[name]) for name, buffer in module.named_buffers())
    assert torch.equal(torch.get_rng_state(), rng_state)
    stored = der.read(np.arange(8), loop)
    assert stored.output is not None
    assert torch.equal(stored.output[0], module(stored.obs["input"][0]))


@pytest.mark.parametrize("name", REFUSED)
def test_unsupported_strategies_are_refused_before_hooks_are_added(name: str) -> None:
    module, optimizer, _, _ = make_small()
    with pytest.raises(ValueError, match=r"use |give |needs "):
        attach([active(name)], module, optimizer)
    assert not optimizer._optimizer_step_pre_hooks
    assert not module._forward_hooks


def test_wrong_calls_of_an_attached_loop_are_refused() -> None:
    module, optimizer, x, y = make_small()
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
