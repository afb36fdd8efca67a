"""Heads that grow between the tasks of an attached loop."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from contract_helpers import active
from loop_helpers import distance, weights
from torch import Tensor, nn

from everloop.loop import (
    DER,
    ERACE,
    EWC,
    SI,
    STRATEGIES,
    KroneckerEWC,
    L2Init,
    LaMAML,
    LwF,
    Strategy,
    attach,
)

REFUSED = {n for n, s in STRATEGIES.items() if s.traits.task_id or s.traits.network}
STREAMS = sorted(n for n, s in STRATEGIES.items() if s.traits.streams and n not in REFUSED)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    hidden = nn.Linear(6, 6)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), hidden, nn.ReLU(), nn.Linear(6, 2))


def grow(module: Any, classes: int) -> torch.optim.Optimizer:
    """Replace the head, keep its old rows, and return a new optimizer: what users do."""
    old = module[-1]
    module[-1] = nn.Linear(6, classes)
    with torch.no_grad():
        module[-1].weight[: old.out_features] = old.weight
        module[-1].bias[: old.out_features] = old.bias
    return torch.optim.SGD(module.parameters(), lr=0.3)


def examples(task: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(task)
    return torch.randn(8, 4, generator=g), torch.randint(2, (8,), generator=g) + 2 * task


def step(module: nn.Module, optimizer: Any, loop: Any, x: Tensor, y: Tensor) -> None:
    loop.observe(x, y)
    optimizer.zero_grad()
    F.cross_entropy(module(x), y).backward()
    optimizer.step()


def first_task(*strategies: Strategy) -> tuple[Any, Any, Any]:
    module = network()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.3)
    loop = attach(strategies, module, optimizer)
    x, y = examples(0)
    loop.begin_task(0)
    for _ in range(3):
        step(module, optimizer, loop, x, y)
    loop.end_task([(x, y)])
    return module, optimizer, loop


@pytest.mark.parametrize("name", STREAMS)
def test_every_strategy_follows_a_growing_head_and_its_state_can_be_restored(name: str) -> None:
    def final(restore: bool) -> list[Tensor]:
        module, _, loop = first_task(active(name))
        optimizer = grow(module, 4)
        loop.move_to(optimizer)
        loop.begin_task(1)
        x, y = examples(1)
        step(module, optimizer, loop, x, y)
        if restore:
            state = copy.deepcopy(loop.state_dict())
            loop.detach()
            loop = attach([active(name)], module, optimizer)
            loop.load_state_dict(state)
        for _ in range(2):
            step(module, optimizer, loop, x, y)
        loop.end_task([(x, y)])
        return weights(module)

    assert distance(final(True), final(False)) == 0.0


@pytest.mark.parametrize(
    "make", [lambda: EWC(3.0), lambda: SI(3.0), lambda: KroneckerEWC(3.0), lambda: L2Init(0.5)]
)
def test_a_penalty_keeps_what_it_had_for_the_old_rows(make: Any) -> None:
    """Its gradient on the old rows is that of an ungrown twin at the same weights."""
    module, optimizer, loop = first_task(make())
    twin, twin_optimizer, twin_loop = first_task(make())
    optimizer = grow(module, 4)
    loop.move_to(optimizer)
    for m, attached in ((module, loop), (twin, twin_loop)):
        attached.begin_task(1)
        attached.observe(*examples(0))
        with torch.no_grad():
            for p in m.parameters():
                p[:2] += 0.5
                p.grad = torch.zeros_like(p)
    optimizer.step()
    twin_optimizer.step()
    for p, q in zip(module.parameters(), twin.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert torch.allclose(p.grad[: len(q)], q.grad, atol=1e-6)
        assert float(p.grad[len(q) :].abs().sum()) == 0.0
    assert float(module[-1].weight.grad[:2].abs().sum()) > 0


def test_outputs_of_old_classes_are_distilled_and_replayed_alone() -> None:
    lwf, der, ace = LwF(1.0), DER(1.0, capacity=8, batch_size=8), ERACE(capacity=8, batch_size=4)
    module, _, loop = first_task(lwf, der)
    then = copy.deepcopy(module)
    optimizer = grow(module, 4)
    loop.move_to(optimizer)
    loop.begin_task(1)
    x, y = examples(1)
    step(module, optimizer, loop, x, y)
    assert lwf.old is not None
    assert lwf.old.tolist() == [True, True, False, False]
    z = loop.outputs(loop.batch(x, y), lwf.teacher.module)[0]
    assert torch.allclose(z[:, :2], then(x))
    assert torch.softmax(z, -1)[:, 2:].max() == 0
    old = der.read(der.memory.rows_of([0]), loop)
    assert old.output is not None
    assert old.output[..., 2:].isnan().all()
    _, _, loop = first_task(ace)
    optimizer = grow(loop.module, 4)
    loop.move_to(optimizer)
    loop.begin_task(1)
    loop.observe(x, y)
    assert ace.seen is not None
    assert ace.seen.tolist() == [True, True, False, False]


def test_step_sizes_of_new_rows_start_at_alpha() -> None:
    maml = LaMAML(alpha=0.25)
    module, _, loop = first_task(maml)
    before = maml.rates["4.weight"].clone()
    loop.move_to(grow(module, 3))
    loop.begin_task(1)
    assert torch.equal(maml.rates["4.weight"][:2], before)
    assert (maml.rates["4.weight"][2] == 0.25).all()


def test_an_optimizer_of_the_old_head_and_a_smaller_head_are_refused() -> None:
    module, _, loop = first_task(EWC())
    optimizer = grow(module, 4)
    with pytest.raises(RuntimeError, match=r"a new 4.weight, but .*; make a new optimizer, and ca"):
        loop.begin_task(1)
    loop.move_to(optimizer)
    module[-1] = nn.Linear(6, 1)
    loop.move_to(torch.optim.SGD(module.parameters(), lr=0.1))
    with pytest.raises(ValueError, match=r"ewc: the weight 4.weight had the shape \(2, 6\)"):
        loop.begin_task(1)
