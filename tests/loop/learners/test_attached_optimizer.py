"""The optimizer of an attached loop: schedules, loss scaling, accumulation, frozen weights."""

from __future__ import annotations

import pytest
import torch
from loop_helpers import distance, same, vector_batch, weights
from torch import nn

from everloop.loop import EWC, LaMAML, LoRA, LwF, attach


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
