"""HAT's masks and their effect on gradients: the equations of the paper."""

from __future__ import annotations

import pytest
import torch
from hat_helpers import (
    Residual,
    TaskAwareLearner,
    batches,
    learn_hat_task,
    mask,
    masked_learner,
    named_weights,
    quick_hat,
)
from loop_helpers import (
    FlatNet,
    update,
    vector_batch,
)
from strategy_helpers import Named, Routed
from torch import Tensor, nn

from everloop.loop import HAT, Batch, Categorical, Learner


def test_hidden_units_are_multiplied_by_the_mask() -> None:
    learner, hat = masked_learner()
    hat.begin_task(Named(0), learner)
    (batch,), w = batches(1), named_weights(learner)
    a, b = (mask(learner, layer).detach() for layer in (0, 2))
    assert a.shape == (6,)
    assert len(a.unique()) == 6
    # the mask comes after the activation, as in the paper
    h = a * torch.relu(batch.obs["x"][0] @ w["0.weight"].T + w["0.bias"])
    h = b * torch.relu(h @ w["2.weight"].T + w["2.bias"])
    torch.testing.assert_close(
        learner.outputs(batch)[0].detach(), h @ w["4.weight"].T + w["4.bias"]
    )


def mask_error(learner: Learner, hat: HAT, s: float) -> float:
    """Largest difference of the first mask from sigmoid(s e)."""
    return float((mask(learner, 0).detach() - torch.sigmoid(s * hat.e["layers.0"])).abs().max())


def test_masks_harden_over_the_batches_of_each_period() -> None:
    """Equation 3 with b = 1 ... B, restarted after each period and at each task."""
    learner, hat = masked_learner(period=4, s_max=100.0)
    for task in range(2):
        hat.begin_task(Named(task), learner)
        for b, batch in zip([1, 2, 3, 4, 1, 2], batches(6), strict=True):
            s = 1 / 100 + (100 - 1 / 100) * (b - 1) / (4 - 1)
            assert mask_error(learner, hat, s) <= 2e-7  # rounding of single precision near 1
            update(learner, batch)
    learner, hat = masked_learner(period=1, s_max=100.0)
    hat.begin_task(Named(0), learner)
    assert mask_error(learner, hat, 100) <= 2e-7


def test_only_units_unused_by_past_tasks_are_penalised() -> None:
    """Equation 5, with one normaliser for all layers."""
    learner, hat = masked_learner()
    learn_hat_task(learner, hat, 0)
    hat.sparsity = 0.6
    used = [(hat.tasks.keys[0][f"layers.{layer}"] > 0).double() for layer in (0, 2)]
    assert 0 < sum(float(u.sum()) for u in used) < 11
    hat.begin_task(Named(1), learner)
    below = sum(float((1 - u).sum()) for u in used)

    def penalty_gradient(a: Tensor) -> Tensor:
        """Gradient of the sparsity penalty in the mask `a`."""
        a.grad = None
        hat.edit_gradients(None, learner)
        assert a.grad is not None
        return a.grad

    for layer, u in zip((0, 2), used, strict=True):
        torch.testing.assert_close(
            penalty_gradient(mask(learner, layer)), 0.6 * (1 - u) / below, rtol=1e-12, atol=0
        )
    hat.units = {name: torch.ones_like(u) for name, u in hat.units.items()}
    assert not penalty_gradient(mask(learner, 0)).any()


def test_masks_descend_the_compensated_gradient_of_loss_and_penalty() -> None:
    """q' = s_max (cosh(s e) + 1) / (s (cosh(e) + 1)) q with q = dL/de of loss plus penalty.

    An e with |s e| > s_max does not move, and |e| stays at most 6.
    """
    learner, hat = masked_learner(period=7, s_max=50.0, rate=1e-3, sparsity=0.6)
    hat.begin_task(Named(0), learner)
    for batch in batches(3):
        update(learner, batch)
    hat.e["layers.0"][0], hat.e["layers.0"][1] = 5.9999, -3.0
    hat._show(hat._now())
    s = 1 / 50 + (50 - 1 / 50) * 3 / 6
    e = {name: x.clone().requires_grad_() for name, x in hat.e.items()}
    (batch,), w = batches(1, seed=9), named_weights(learner)
    a, b = torch.sigmoid(s * e["layers.0"]), torch.sigmoid(s * e["layers.2"])
    h = a * (batch.obs["x"][0] @ w["0.weight"].T + w["0.bias"]).relu()
    h = b * (h @ w["2.weight"].T + w["2.bias"]).relu()
    assert batch.target is not None
    loss = (
        nn.functional.cross_entropy(h @ w["4.weight"].T + w["4.bias"], batch.target[0])
        + 0.6 * (a.sum() + b.sum()) / 11
    )
    q = dict(zip(e, torch.autograd.grad(loss, list(e.values())), strict=True))
    update(learner, batch)
    moved = 0
    for name, x in e.items():
        x = x.detach()
        compensated = 50 * (torch.cosh(s * x) + 1) / (s * (torch.cosh(x) + 1)) * q[name]
        flat = (s * x).abs() > 50
        assert torch.equal(hat.e[name][flat], x[flat])
        torch.testing.assert_close(
            hat.e[name][~flat], (x - 1e-3 * compensated)[~flat], rtol=1e-6, atol=1e-12
        )
        moved += int((~flat).sum())
    assert 0 < moved < 11
    hat.rate = 1e9
    hat.updates = 0
    hat._show(hat._now())
    update(learner, batch)
    assert {float(x.abs()) for x in hat.e["layers.0"]} == {6.0}


@pytest.mark.parametrize("alone", ["gradient", "step", "both"])
def test_plain_gradient_descent_follows_the_papers_gradient(
    alone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equation 2: g' = (1 - min(a_i^<t, a_j^<t)) g, for a bias (1 - a_i^<t) g.

    The inputs of the first layer count as used. Here editing the gradient alone and restoring
    weights after the step alone give the same result.
    """
    learner, hat = masked_learner()
    learn_hat_task(learner, hat, 0)
    learn_hat_task(learner, hat, 1)
    a, b = (
        torch.maximum(*[(hat.tasks.keys[task][f"layers.{layer}"] > 0).double() for task in (0, 1)])
        for layer in (0, 2)
    )
    assert 0 < a.sum() < 6
    assert 0 < b.sum() < 5
    free = {"0.weight": 1 - a[:, None].expand(6, 4), "0.bias": 1 - a}
    free |= {"2.weight": 1 - torch.minimum(b[:, None], a[None]), "2.bias": 1 - b}
    if alone == "gradient":
        monkeypatch.setattr(hat, "values", dict(learner.module.named_parameters()))
    if alone == "step":
        monkeypatch.setattr(hat, "edit_gradients", lambda learner, batch: None)
    hat.begin_task(Named(2), learner)
    for batch in batches(5, 2):
        w = dict(learner.module.named_parameters())
        g = torch.autograd.grad(learner.loss(batch), list(w.values()))
        expected = {
            name: (p - 0.1 * free.get(name.removeprefix("layers."), 1.0) * d).detach()
            for (name, p), d in zip(w.items(), g, strict=True)
        }
        update(learner, batch)
        for name, p in learner.module.named_parameters():
            torch.testing.assert_close(p.detach(), expected[name], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("restore", [True, False])
def test_under_adam_used_weights_stay_only_if_restored_after_the_step(
    restore: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gradient of 0 does not stop Adam, so HAT applies equation 2 to the step."""
    learner, hat = masked_learner(torch.optim.Adam)
    learn_hat_task(learner, hat, 0)
    then = named_weights(learner)
    used = {name.removeprefix("layers."): u > 0 for name, u in hat.used.items()}
    if not restore:
        monkeypatch.setattr(hat, "values", dict(learner.module.named_parameters()))
    hat.begin_task(Named(1), learner)
    for batch in batches(10, 1):
        update(learner, batch)
    now = named_weights(learner)
    assert set(used) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert all(torch.equal(now[name][u], then[name][u]) for name, u in used.items()) is restore
    assert not any(torch.equal(now[name][~u], then[name][~u]) for name, u in used.items())


def inputs_used(net: nn.Module, x: Tensor) -> tuple[HAT, dict[str, Tensor]]:
    """HAT after one task, and by layer which inputs count as used."""
    torch.manual_seed(0)
    learner, hat = TaskAwareLearner(FlatNet(net, "x"), Categorical(3)), quick_hat()
    learner.attach([hat])
    hat.begin_task(Named(0), learner)
    batch = Batch(
        {"x": x[None]},
        torch.ones(1, len(x), dtype=torch.bool),
        torch.zeros(1, len(x), dtype=torch.long),
    )
    hat.end_task(Named(0), [batch], learner)
    return hat, {name.removeprefix("layers."): u for name, u in hat.inputs.items()}


@pytest.mark.parametrize("rows", [1, 20])
def test_inputs_are_used_as_much_as_the_units_they_come_from(rows: int) -> None:
    """Through activations, pooling, flattening and sums, for few examples and inputs of 0."""
    hat, found = inputs_used(
        nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)),
        torch.zeros(rows, 4),
    )
    assert torch.equal(found["0"], torch.ones(4))
    assert torch.equal(found["2"], hat.units["layers.0"])
    assert 0 < found["2"].sum() < 6
    net = nn.Sequential(
        nn.Conv2d(2, 6, 3),
        nn.ReLU(),
        nn.Conv2d(6, 4, 3),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 5),
        nn.ReLU(),
        nn.Linear(5, 3),
    )
    hat, found = inputs_used(net, torch.randn(rows, 2, 8, 8))
    assert torch.equal(found["0"], torch.ones(2))
    assert torch.equal(found["2"], hat.units["layers.0"])
    assert torch.equal(found["5"], hat.units["layers.2"].repeat_interleave(4))
    assert len(found["5"].unique()) == 2
    hat, found = inputs_used(Residual(), torch.randn(rows, 4))
    assert torch.equal(found["second"], hat.units["layers.first"])
    hat, found = inputs_used(
        nn.Sequential(
            nn.Linear(4, 6),
            nn.Sigmoid(),
            nn.Linear(6, 9),
            nn.LayerNorm(9),
            nn.Linear(9, 5),
            nn.Linear(5, 3),
        ),
        torch.randn(rows, 4),
    )
    assert all(bool(u.all()) for u in found.values())


def test_a_grouped_convolutions_channel_reads_only_its_group() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 4, 1),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24, 3),
    )
    hat, _ = inputs_used(net, torch.randn(5, 1, 4, 4))
    i, j = hat.units["layers.2"], hat.units["layers.0"]
    expected = torch.stack([torch.minimum(i[k], j[:2] if k < 3 else j[2:]) for k in range(6)])
    assert torch.equal(hat.used["layers.2.weight"], expected[..., None, None].expand(6, 2, 3, 3))
    assert 0 < expected.sum() < 12


def test_shared_weights_get_no_mask_and_belong_to_the_first_task() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    hat, _ = inputs_used(
        nn.Sequential(
            first, nn.ReLU(), second, nn.ReLU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)
        ),
        torch.randn(9, 4),
    )
    assert set(hat.e) == {"layers.4"}
    assert all(bool(hat.used[f"layers.{name}"].all()) for name in ("0.weight", "0.bias", "2.bias"))


def test_inputs_and_weights_are_found_in_all_batches() -> None:
    """Only the last of many examples passes through one of the layers."""
    torch.manual_seed(0)
    learner, hat = TaskAwareLearner(FlatNet(Routed(), "x").double(), Categorical(3)), quick_hat()
    learner.attach([hat])
    hat.begin_task(Named(0), learner)
    plain, routed = vector_batch(5, 4, 3), vector_batch(300, 4, 3, seed=1)
    plain.obs["x"].clamp_(max=0.0)
    routed.obs["x"][0, :-1].clamp_(max=0.0)
    routed.obs["x"][0, -1] = 1.0
    hat.end_task(Named(0), [plain, routed], learner)
    i, j = hat.units["layers.routed"], hat.units["layers.first"]
    assert torch.equal(hat.inputs["layers.routed"], j)
    assert torch.equal(hat.used["layers.routed.weight"], torch.minimum(i[:, None], j))
