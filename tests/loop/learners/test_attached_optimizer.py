"""The optimizer of an attached loop: schedules, loss scaling, accumulation, frozen weights."""

from __future__ import annotations

import copy

import pytest
import torch
from attached_helpers import make_small, plain_step
from loop_helpers import distance, same, vector_batch, weights
from stub_helpers import Decay
from torch import nn

from everloop.loop import (
    EWC,
    LaMAML,
    LoRA,
    LwF,
    NotFiniteError,
    attach,
)


def test_a_torch_schedule_continues_when_weights_are_added() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    loop = attach([LoRA(rank=2, adapters="online", train_base=False)], module, optimizer)
    loop.begin_task(0)
    x, y = torch.randn(8, 4), torch.randint(3, (8,))
    for _ in range(3):
        loop.observe(x, y)
        nn.functional.cross_entropy(module(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.125]


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_accumulated_scaled_losses_equal_one_batch(scale: float) -> None:
    """The losses of two halves are divided by 2 and scaled."""
    batch = vector_batch(8, 4, 3)
    assert batch.target is not None
    x, y = batch.obs["x"][0], batch.target[0]
    ends = []
    for parts in (1, 2):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
        optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        loop = attach([LwF(2.0)], module, optimizer, accumulate=parts, scaler=scaler)
        for task in range(2):
            loop.begin_task(task)
            for _ in range(3):
                optimizer.zero_grad()
                for a, b in zip(x.chunk(parts), y.chunk(parts), strict=True):
                    loop.observe(a, b)
                    scaler.scale(nn.functional.cross_entropy(module(a), b) / parts).backward()
                scaler.step(optimizer)
                scaler.update()
            loop.end_task([(x, y)])
            x = x.flip(1)
        ends.append(weights(module))
    assert distance(*ends) < 1e-6


def test_a_fused_optimizer_with_scaled_gradients_is_refused() -> None:
    module = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, fused=True)
    scaler = torch.amp.GradScaler("cpu")
    attach([EWC()], module, optimizer, scaler=scaler).begin_task(0)
    scaler.scale(module(torch.ones(2, 3)).sum()).backward()
    before = weights(module)
    with pytest.raises(
        ValueError,
        match=r"^the optimizer is fused and its gradients are scaled; "
        r"with a GradScaler use fused=False$",
    ):
        scaler.step(optimizer)
    assert same(weights(module), before)


def test_strategies_get_only_the_weights_of_the_optimizer() -> None:
    module = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    loop = attach([LaMAML()], module, torch.optim.SGD(module[2].parameters(), lr=0.1))
    assert list(loop.weights()) == ["2.weight", "2.bias"]


@pytest.mark.parametrize("scale", [1.0, 64.0])
def test_a_loss_of_the_weights_is_added_to_the_loops_loss(scale: float) -> None:
    module, optimizer, x, y = make_small()
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    loop = attach([Decay(as_loss=True)], module, optimizer, scaler=scaler)
    before = weights(module)
    own = torch.autograd.grad(nn.functional.cross_entropy(module(x), y), list(module.parameters()))
    loop.begin_task(0)
    loop.observe(x, y)
    scaler.scale(nn.functional.cross_entropy(module(x), y)).backward()
    scaler.step(optimizer)
    expected = [w - 0.1 * (g + 0.1 * w) for w, g in zip(before, own, strict=True)]
    assert distance(weights(module), expected) < 1e-6


def test_the_gradient_is_clipped_after_the_strategies() -> None:
    module, optimizer, x, y = make_small()
    loop = attach([EWC(1e4)], module, optimizer, max_grad_norm=0.5)
    loop.begin_task(0)
    loop.observe(x, y)
    plain_step(module, optimizer, x, y)
    loop.end_task([(x, y)])
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.1)
    before = weights(module)
    loop.begin_task(1)
    loop.observe(x, y)
    plain_step(module, optimizer, x, y)
    moved = torch.cat([(a - b).flatten() for a, b in zip(before, weights(module), strict=True)])
    assert float(moved.norm()) == pytest.approx(0.1 * 0.5, rel=1e-4)


def test_parameter_groups_added_later_are_clipped_and_checked() -> None:
    module, optimizer, x, y = make_small()
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


def test_a_loop_can_move_to_another_optimizer() -> None:
    module, optimizer, x, y = make_small()
    ewc = EWC(50.0)
    loop = attach([ewc], module, optimizer)
    loop.begin_task(0)
    loop.observe(x, y)
    plain_step(module, optimizer, x, y)
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
    plain_step(module, second, x, y)
    nn.functional.cross_entropy(twin(x), y).backward()
    terms = zip(
        twin.parameters(), ewc.penalty.precision.values(), ewc.penalty.anchor.values(), strict=True
    )
    expected = [p.detach() - 0.1 * (p.grad + 50.0 * P * (p.detach() - c)) for p, P, c in terms]
    assert distance(weights(module), expected) < 1e-6
