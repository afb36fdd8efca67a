"""Attached loops of networks with a head for each task."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from loop_helpers import distance, weights
from torch import Tensor, nn

from everloop.loop import (
    EWC,
    DERPlusPlus,
    ICaRL,
    KroneckerEWC,
    LaMAML,
    LwF,
    Replay,
    Strategy,
    attach,
)


class Heads(nn.Module):
    """Called with the task; its heads have different sizes."""

    def __init__(self, sizes: tuple[int, ...] = (3, 2)) -> None:
        super().__init__()
        self.body = nn.Linear(4, 6)
        self.heads = nn.ModuleList(nn.Linear(6, size) for size in sizes)

    def forward(self, x: Tensor, task: int) -> Any:
        return self.heads[task](torch.tanh(self.body(x)))


def for_task(x: Tensor, task: int) -> dict[str, Any]:
    return {"x": x, "task": task}


def start(strategy: Strategy, **settings: Any) -> tuple[Heads, Any, Any]:
    torch.manual_seed(0)
    module = Heads(**settings)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.3)
    return module, optimizer, attach([strategy], module, optimizer, for_task=for_task)


def learn(module: Heads, optimizer: Any, loop: Any, task: int, steps: int = 3) -> Tensor:
    torch.manual_seed(task)
    x, y = torch.randn(8, 4), torch.randint(2, (8,))
    loop.begin_task(task)
    for _ in range(steps):
        loop.observe(x, y)
        optimizer.zero_grad()
        F.cross_entropy(module(x, task), y).backward()
        optimizer.step()
    loop.end_task([(x, y)])
    return x


def test_lwf_keeps_the_old_heads_and_leaves_the_new_one_alone() -> None:
    module, optimizer, loop = start(LwF(2.0, temperature=1.0))
    learn(module, optimizer, loop, 0)
    then, x, y = Heads(), torch.randn(8, 4), torch.randint(2, (8,))
    then.load_state_dict(module.state_dict())
    with torch.no_grad():
        module.body.weight.add_(0.2)
    loop.begin_task(1)
    loop.observe(x, y)
    optimizer.zero_grad()
    F.cross_entropy(module(x, 1), y).backward()
    optimizer.step()
    found = [p.grad for p in module.parameters()]
    old = torch.log_softmax(then(x, 0).detach(), -1)
    with torch.no_grad():  # undo the step, so that the gradient is taken where the loop took it
        for p, g in zip(module.parameters(), found, strict=True):
            if g is not None:
                p.add_(g, alpha=0.3)
    distance_to_old = F.kl_div(
        torch.log_softmax(module(x, 0), -1), old, reduction="batchmean", log_target=True
    )
    loss = F.cross_entropy(module(x, 1), y) + 2 * distance_to_old
    expected = torch.autograd.grad(loss, list(module.parameters()))
    assert distance(found, expected) < 1e-5


@pytest.mark.parametrize(
    "strategy",
    [Replay(capacity=20, batch_size=4), DERPlusPlus(capacity=20, batch_size=4)],
    ids=["replay", "derpp"],
)
def test_stored_examples_are_replayed_by_their_own_heads(strategy: Any) -> None:
    module, optimizer, loop = start(strategy)
    learn(module, optimizer, loop, 0)
    before = weights(module.heads[0])
    learn(module, optimizer, loop, 1)
    assert distance(weights(module.heads[0]), before) > 0
    stored = strategy.memory.rows_of([0])
    output = loop.outputs(strategy.read(stored, loop))[0]
    assert torch.allclose(output, module(strategy.read(stored, loop).obs["input"][0], 0))


@pytest.mark.parametrize("make", [lambda: KroneckerEWC(5.0), lambda: EWC(5.0), lambda: LaMAML()])
def test_the_body_and_the_heads_of_other_tasks_are_protected(make: Any) -> None:
    module, optimizer, loop = start(make())
    learn(module, optimizer, loop, 0)
    before = weights(module.heads[0])
    learn(module, optimizer, loop, 1)
    if not isinstance(loop.strategies[0], LaMAML):
        assert distance(weights(module.heads[0]), before) == 0.0


def test_kronecker_factors_of_the_body_are_those_of_the_tasks_own_head() -> None:
    """G is the mean of g g', and with labels from the model E g g' follows from the softmax."""
    kfac = KroneckerEWC(1.0, examples=20_000)
    module, _, loop = start(kfac)
    loop.begin_task(1)
    x = torch.randn(4, 4)
    many, y = x.repeat(5000, 1), torch.zeros(20_000, dtype=torch.long)
    loop.end_task([(many, y)])
    assert set(kfac.layers) == {"body", "heads.1"}
    p = torch.softmax(module(x, 1).detach(), -1)
    G = (torch.diag_embed(p) - p[:, :, None] * p[:, None]).mean(0)
    assert torch.allclose(kfac.layers["heads.1"][0][1], G, atol=0.01)


def test_strategies_of_one_head_are_refused() -> None:
    with pytest.raises(ValueError, match=r"icarl predicts .* with one head; with for_task use"):
        start(ICaRL(capacity=9))
