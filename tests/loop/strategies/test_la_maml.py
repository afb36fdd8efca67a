"""La-MAML: its update equals the paper's."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from loop_helpers import (
    distance,
    mlp,
    stream,
    update,
    vector_batch,
    weights,
)
from plasticity_helpers import plain_learner, two_hidden_layers
from strategy_helpers import Named
from stub_helpers import Recorder
from torch import Tensor, nn

from everloop.loop import (
    MIR,
    SI,
    Batch,
    L2Init,
    LaMAML,
    NestedOptimizer,
    Strategy,
    SupervisedLearner,
    Training,
)


def gradients_at(values: list[Tensor], parts: list[tuple[float, Batch]]) -> list[Tensor]:
    """Gradients of the weighted sum of losses at the weights `values`."""
    twin = plain_learner(two_hidden_layers())
    with torch.no_grad():
        for p, value in zip(twin.module.parameters(), values, strict=True):
            p.copy_(value)
    loss = torch.stack([share * twin.loss(part) for share, part in parts]).sum()
    return list(torch.autograd.grad(loss, list(twin.module.parameters())))


@pytest.mark.parametrize("adam", [False, True], ids=["sgd", "adam"])
@pytest.mark.parametrize("alpha", [0.2, 0.0], ids=["rates above 0", "rates around 0"])
def test_la_maml_takes_the_papers_update(adam: bool, alpha: float) -> None:
    """Two parts; the second step uses the rates learned in the first.

    Adam does not rescale the step. With alpha 0 half of the learned rates are below 0, where the
    paper takes no step.
    """
    layers = two_hidden_layers()
    learner = plain_learner(layers, lr=0.7, adam=adam)
    strategy = LaMAML(alpha=alpha, alpha_lr=0.5, parts=2, capacity=6, batch_size=4)
    batch, old = vector_batch(6, 4, 3), vector_batch(6, 4, 3, seed=1)
    strategy.observe(old, learner)
    drawn: list[Batch] = []
    strategy.sample = lambda model: drawn[-1]  # type: ignore[method-assign]
    learner.attach([strategy])
    rates = [torch.full_like(w, alpha) for w in weights(learner.module)]
    for _ in range(2):
        start = weights(learner.module)
        drawn += [draw for draw in [strategy.draw(learner)] if draw is not None]
        strategy.take_next(learner)  # drawn when `old` was observed
        update(learner, batch)
        fast, led = [w.clone() for w in start], [torch.zeros_like(w) for w in start]
        meta, drift = ([torch.zeros_like(w) for w in start] for _ in range(2))
        for part in (batch[:3], batch[3:]):
            g = gradients_at(fast, [(1.0, part)])
            led = [a + b for a, b in zip(led, g, strict=True)]
            fast = [w - a.clamp(min=0) * x for w, a, x in zip(fast, rates, g, strict=True)]
            ahead = gradients_at(fast, [(0.6, batch), (0.4, drawn[-1])])
            meta = [m + x / 2 for m, x in zip(meta, ahead, strict=True)]
            drift = [d + x * y / 2 for d, x, y in zip(drift, ahead, led, strict=True)]
        rates = [a + 0.5 * d for a, d in zip(rates, drift, strict=True)]
        expected = [w - a.clamp(min=0) * m for w, a, m in zip(start, rates, meta, strict=True)]
        assert distance(weights(learner.module), expected) < 1e-12
        assert distance(list(strategy.rates.values()), rates) < 1e-12
    assert any(bool((a < 0).any()) for a in rates) == (alpha == 0)


def test_la_mamls_inner_steps_do_not_update_batch_norm() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).double()
    learner, batch = plain_learner(layers), vector_batch(6, 4, 3)
    learner.attach([LaMAML(parts=2)])
    twin = plain_learner(copy.deepcopy(layers))
    twin.outputs(batch)
    update(learner, batch)
    expected = dict(twin.module.layers.named_buffers())
    assert expected["1.num_batches_tracked"] == 1
    assert all(torch.equal(buffer, expected[name]) for name, buffer in layers.named_buffers())


def test_la_maml_keeps_the_penalties_of_other_strategies() -> None:
    """With plain gradient descent the step of `l2_init` is added. La-MAML must come last."""

    def step(*strategies: Strategy) -> list[Tensor]:
        module = mlp()
        learner = SupervisedLearner(
            module, stream(), optimizer=torch.optim.SGD(module.parameters(), lr=0.5)
        )
        learner.attach(strategies)
        for strategy in strategies:
            strategy.begin_task(learner.world.tasks[0], learner)
        with torch.no_grad():
            for p in module.parameters():
                p += 0.1
        learner.learn([0], 8)
        return weights(module)

    def la_maml() -> LaMAML:
        return LaMAML(alpha=0.2)

    alone = step(la_maml())
    expected_with_l2 = [w - 0.5 * 2 * 0.3 * 0.1 for w in alone]
    assert distance(step(L2Init(0.3), la_maml()), expected_with_l2) < 1e-12
    message = r"^la_maml must come last in the list of strategies; it is number 1$"
    with pytest.raises(ValueError, match=message):
        step(la_maml(), L2Init(0.3))


def test_other_strategies_see_the_step_of_la_maml() -> None:
    """SI's path integral is the decrease of the loss along the method's gradient and step."""
    learner = plain_learner(two_hidden_layers(), lr=0.7, adam=True)
    si, batch = SI(), vector_batch(6, 4, 3)
    learner.attach([si, LaMAML(alpha=0.2)])
    si.begin_task(Named(), learner)
    before = weights(learner.module)
    update(learner, batch)
    for name, omega, old in zip(si.path.omega, si.path.omega.values(), before, strict=True):
        change = learner.weights()[name].detach() - old
        torch.testing.assert_close(omega, change**2 / 0.7)  # - g change with g = - change / lr


@pytest.mark.parametrize("strategy", [LaMAML, MIR])
def test_a_batch_is_not_replayed_to_itself(strategy: Any) -> None:
    learner = SupervisedLearner(mlp(), stream())
    replayer = strategy(capacity=100, batch_size=20)
    replayed: list[Batch | None] = []
    take = replayer.take_next
    replayer.take_next = lambda model: (replayed.append(take(model)), replayed[-1])[1]
    recorder = Recorder()
    learner.attach([recorder, replayer])
    learner.learn([0], 8 * 4)
    assert replayed[0] is None
    assert len(replayed) == 4
    for stored, fresh in zip(replayed[1:], recorder.observed[1:], strict=True):
        assert stored is not None
        shown = {x.numpy().tobytes() for x in fresh.obs["image"][0]}
        assert not shown & {x.numpy().tobytes() for x in stored.obs["image"][0]}


def test_la_maml_refuses_gradient_accumulation() -> None:
    with pytest.raises(
        ValueError,
        match=r"^accumulate is 3; it must be 1 for la_maml, which looks ahead",
    ):
        SupervisedLearner(mlp(), stream(), Training(accumulate=3)).attach([LaMAML()])


def test_la_maml_refuses_what_the_optimizer_could_not_do() -> None:
    module = mlp()
    decaying = torch.optim.AdamW(module.parameters(), weight_decay=0.1)
    with pytest.raises(ValueError, match=r"^weight_decay is 0.1; la_maml takes its own steps, "):
        SupervisedLearner(module, stream(), optimizer=decaying).attach([LaMAML()])
    inner = torch.optim.SGD(module.parameters(), lr=0.1)
    nested = NestedOptimizer(inner, {2: list(module.parameters())})
    with pytest.raises(ValueError, match=r"^la_maml updates all weights at every step, so it can"):
        SupervisedLearner(module, stream(), optimizer=nested).attach([LaMAML()])
