"""Likelihoods of attached loops: losses and importances follow them, and labels are checked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from attached_helpers import make_small
from torch import Tensor, nn

from everloop.loop import DER, EWC, Categorical, LwF, Replay, TokenCategorical, attach


def linear(outputs: int) -> tuple[nn.Linear, torch.optim.Optimizer, Tensor]:
    torch.manual_seed(0)
    module = nn.Linear(4, outputs)
    return module, torch.optim.SGD(module.parameters(), lr=0.1), torch.randn(6, 4)


class Tagger(nn.Module):
    """Tags of each of L tokens, with the logits (B, L, classes)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Any:
        logits: Tensor = self.layer(x)
        return logits


CASES = {
    "bernoulli": (torch.tensor([0, 1, 1, 0, 1, 0]), 1, F.binary_cross_entropy_with_logits),
    "gaussian": (torch.arange(6.0), 1, F.mse_loss),
}


@pytest.mark.parametrize("name", CASES)
def test_the_importance_of_one_output_is_that_of_its_likelihood(name: str) -> None:
    """d log p / d w = (y - mean) x, where the mean is sigmoid(z) or z itself."""
    labels, size, _ = CASES[name]
    module, optimizer, x = linear(size)
    ewc = EWC(1.0, fisher="empirical")
    loop = attach([ewc], module, optimizer, likelihood=name)
    loop.begin_task(0)
    loop.end_task([(x, labels)])
    z = module(x).detach()
    error = labels[:, None] - (torch.sigmoid(z) if name == "bernoulli" else z)
    assert torch.allclose(ewc.penalty.precision["weight"], (error * x).square().mean(0)[None])


def test_sampled_importances_of_one_logit_approach_the_expected_ones() -> None:
    """E (y - s)^2 = s (1 - s) for y drawn from sigmoid(z) = s."""
    module, optimizer, x = linear(1)
    ewc = EWC(1.0, examples=40_000)
    loop = attach([ewc], module, optimizer, likelihood="bernoulli")
    loop.begin_task(0)
    many = x.repeat(5000, 1)
    loop.end_task([(many, torch.zeros(len(many)))])
    s = torch.sigmoid(module(x).detach())
    expected = (s * (1 - s) * x.square()).mean(0)[None]
    assert torch.allclose(ewc.penalty.precision["weight"], expected, rtol=0.05)


@pytest.mark.parametrize("name", CASES)
def test_losses_of_replayed_examples_are_torchs(name: str) -> None:
    labels, size, loss = CASES[name]
    module, optimizer, x = linear(size)
    loop = attach([Replay(capacity=9, batch_size=2)], module, optimizer, likelihood=name)
    loop.begin_task(0)
    loop.observe(x, labels)
    found = loop.loss(loop.batch(x, labels))
    assert torch.allclose(found, loss(module(x)[:, 0], labels.float()))


def test_tokens_without_a_label_count_neither_in_the_loss_nor_in_the_importance() -> None:
    torch.manual_seed(0)
    module, x = Tagger(), torch.randn(2, 5, 4)
    labels = torch.tensor([[0, 1, 9, 9, 9], [2, -100, 1, 0, 9]])
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    ewc = EWC(1.0, fisher="empirical")
    loop = attach([ewc], module, optimizer, likelihood=TokenCategorical(5, 3, ignore=9))
    loop.begin_task(0)
    loop.observe(x, labels)
    known = labels.masked_fill(labels == 9, -100)
    expected = F.cross_entropy(module(x).flatten(0, 1), known.flatten())
    assert torch.allclose(loop.loss(loop.batch(x, labels)), expected)
    loop.end_task([(x, labels)])
    squares = torch.zeros(3, 4)
    for one, tags in zip(x, known, strict=True):
        loss = F.cross_entropy(module(one), tags, reduction="sum")
        squares += torch.autograd.grad(loss, module.layer.weight)[0].square() / 2
    assert torch.allclose(ewc.penalty.precision["layer.weight"], squares, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_distillation_follows_the_likelihood(name: str) -> None:
    """T^2 KL between Bernoullis of softened logits, or half the squared distance of means."""
    labels, size, loss = CASES[name]
    module, optimizer, x = linear(size)
    loop = attach([LwF(3.0, temperature=2.0)], module, optimizer, likelihood=name)
    loop.begin_task(0)
    loop.observe(x, labels)
    loop.end_task([(x, labels)])
    then = module(x).detach()
    with torch.no_grad():
        module.weight.add_(0.3)
    loop.begin_task(1)
    loop.observe(x, labels)
    loss(module(x)[:, 0], labels.float()).backward()
    assert module.weight.grad is not None
    z = module(x)
    if name == "bernoulli":
        p, q = (torch.distributions.Bernoulli(logits=a / 2) for a in (then, z))
        distance = 4 * torch.distributions.kl_divergence(p, q).mean()
    else:
        distance = 0.5 * (then - z).square().mean()
    own = loss(z[:, 0], labels.float())
    expected = torch.autograd.grad(own + 3 * distance, module.weight)[0]
    assert torch.allclose(module.weight.grad, expected, atol=1e-6)


def test_outputs_of_one_number_are_stored_as_they_are() -> None:
    module, optimizer, x = linear(1)
    der = DER(capacity=6, batch_size=2)
    loop = attach([der], module, optimizer, likelihood="gaussian")
    loop.begin_task(0)
    loop.observe(x, torch.arange(6.0))
    assert torch.allclose(torch.from_numpy(der.memory.items["output"][:, 0]), module(x).detach())


def test_one_output_needs_a_likelihood() -> None:
    module, optimizer, _ = linear(1)
    with pytest.raises(ValueError, match=r"one output.*pass likelihood='bernoulli'.*'gaussian'"):
        attach([EWC()], module, optimizer)
    with pytest.raises(ValueError, match="likelihood is 'normal'; choose one of categorical, "):
        attach([EWC()], module, optimizer, likelihood="normal")


Y = torch.tensor([0, 2, 1, 1, 0, 2, 0, 1])
WRONG = [
    (Y.int(), "categorical", r"^labels are int32 \(8,\); likelihood categorical needs int64 \(8,"),
    (Y.float(), None, r"^labels are float32 \(8,\); .*pass likelihood='bernoulli'"),
    (Y[:, None], None, r"^labels are int64 \(8, 1\); likelihood categorical needs int64 \(8,\)"),
    (Y + 1, None, r"^labels are from 1 to 3; they must be from 0 to 2$"),
    (torch.rand(8, 2), "bernoulli", r"^labels are float32 \(8, 2\); they must have the outputs'"),
    (torch.full((8, 3), 2), "bernoulli", r"^labels are from 2 to 2; they must be from 0 to 1$"),
    (torch.ones(8, 3).long(), "gaussian", r"gaussian needs floats: pass labels.float\(\)$"),
    (torch.full((8, 3), torch.nan), "gaussian", r"^labels are from nan to nan; .* finite$"),
    (Y, "tokens", r"^the network returns \(8, 3\); likelihood 'tokens' needs logits \(B, L, "),
]


@pytest.mark.parametrize(("labels", "likelihood", "message"), WRONG)
def test_labels_that_do_not_fit_are_refused_at_the_first_batch(
    labels: Tensor, likelihood: str | None, message: str
) -> None:
    module, optimizer, x, _ = make_small()
    loop = attach([EWC()], module, optimizer, likelihood=likelihood)
    loop.begin_task(0)
    with pytest.raises(ValueError, match=message):
        loop.observe(x, labels)


def test_a_network_that_returns_probabilities_is_refused() -> None:
    module, _, x, y = make_small()
    module = nn.Sequential(module, nn.Softmax(-1))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    loop = attach([LwF()], module, optimizer)
    loop.begin_task(0)
    with pytest.raises(ValueError, match=r"probabilities; .*pass outputs=torch.log"):
        loop.observe(x, y)
    logs = attach([LwF()], module, optimizer, outputs=torch.log)
    logs.begin_task(0)
    logs.observe(x, y)
    assert isinstance(logs.likelihood, Categorical)
