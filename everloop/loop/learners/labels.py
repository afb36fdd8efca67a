"""Labels and their likelihood: the loss, and in a user's own loop which one it is."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everloop.loop.likelihood import (
    Bernoulli,
    Categorical,
    Likelihood,
    TokenCategorical,
    UnitGaussian,
)

NAMED: dict[str, Callable[[int], Likelihood]] = {
    "categorical": Categorical,
    "bernoulli": Bernoulli,
    "gaussian": UnitGaussian,
    "tokens": lambda classes: TokenCategorical(1, classes),
}
"""Likelihoods that `attach` knows by name, as functions of the last layer's size."""

NEVER = -1e4
"""Logit of a class that a task's head lacks; its probability is 0."""


def likelihood_of(given: str | Likelihood | None, head: nn.Linear | None) -> Likelihood:
    """Return the likelihood that was given by name or as an object, or a categorical one.

    Args:
        given: What the user passed; None for a categorical one, if there is more than one output.
        head: The network's last layer, if it has one.

    Raises:
        ValueError: If the name is unknown, or if None leaves more than one possibility.
    """
    if not isinstance(given, str | None):
        return given
    if given is not None and given not in NAMED:
        raise ValueError(f"likelihood is {given!r}; choose one of {', '.join(NAMED)}")
    if given is None and head is None:
        raise ValueError(
            "the network has no linear layer; pass likelihood= (one of "
            f"{', '.join(NAMED)}), and head= if it has a last layer"
        )
    if given is None and head is not None and head.out_features == 1:
        raise ValueError(
            "the network has one output, which may be a logit or a number; pass "
            "likelihood='bernoulli' for labels 0 and 1, or likelihood='gaussian' for regression"
        )
    return NAMED[given or "categorical"](1 if head is None else head.out_features)


def fitted(likelihood: Likelihood, logits: Tensor) -> Likelihood:
    """Return the likelihood with the size of `logits`, the network's outputs for B examples.

    Raises:
        ValueError: If the outputs have a shape that the likelihood can't have.
    """
    shape = tuple(logits.shape)
    if isinstance(likelihood, Categorical):
        if len(shape) != 2 or shape[1] < 2:
            raise ValueError(
                f"the network returns {shape} for one label per example; it must return logits "
                "(B, classes) with 2 classes or more; pass outputs= to pick them, or "
                "likelihood='tokens', 'bernoulli' or 'gaussian'"
            )
        if _are_probabilities(logits):
            raise ValueError(
                "the network returns probabilities; strategies need logits: return the logits, or "
                "pass outputs=torch.log"
            )
        return Categorical(shape[1], likelihood.temperature)
    if isinstance(likelihood, TokenCategorical):
        if len(shape) != 3:
            raise ValueError(
                f"the network returns {shape}; likelihood 'tokens' needs logits (B, L, classes); "
                "pass outputs= to pick them"
            )
        return TokenCategorical(shape[1], shape[2], likelihood.ignore)
    if isinstance(likelihood, Bernoulli | UnitGaussian):
        return type(likelihood)(int(logits[0].numel()))
    return likelihood


def check_labels(likelihood: Likelihood, logits: Tensor, labels: Tensor) -> None:
    """Check that labels fit the likelihood and the network's outputs for the same examples.

    Raises:
        ValueError: If dtype, shape or range do not fit. The message says what is expected.
    """
    shape, rows = tuple(labels.shape), len(logits)
    found = f"labels are {str(labels.dtype).removeprefix('torch.')} {shape}"
    used, low, high = labels, -torch.inf, torch.inf
    if isinstance(likelihood, Categorical | TokenCategorical):
        tokens = isinstance(likelihood, TokenCategorical)
        expected = tuple(logits.shape[:2]) if tokens else (rows,)
        if labels.dtype != torch.int64 or shape != expected:
            raise ValueError(
                f"{found}; likelihood {'tokens' if tokens else 'categorical'} needs int64 "
                f"{expected}; pass likelihood='bernoulli' for several yes-or-no labels, "
                "'gaussian' for regression, or 'tokens' for a label per token"
            )
        if isinstance(likelihood, TokenCategorical):
            used = labels[likelihood.counts(labels)]
        low, high = 0.0, logits.shape[-1] - 1.0
    elif isinstance(likelihood, Bernoulli | UnitGaussian):
        if labels.numel() != logits.numel() or len(labels) != rows:
            raise ValueError(f"{found}; they must have the outputs' shape, {tuple(logits.shape)}")
        if isinstance(likelihood, Bernoulli):
            low, high = 0.0, 1.0
        elif not labels.is_floating_point():
            raise ValueError(f"{found}; likelihood gaussian needs floats: pass labels.float()")
    else:
        return
    least, most = (float(used.min()), float(used.max())) if used.numel() else (0.0, 0.0)
    if not (low <= least and most <= high) or max(-least, most) == torch.inf:
        limits = "finite" if high == torch.inf else f"from {low:g} to {high:g}"
        raise ValueError(f"labels are from {least:g} to {most:g}; they must be {limits}")


def rows_of(likelihood: Likelihood, x: Tensor) -> Tensor:
    """Return outputs or labels of B examples with the shape that the likelihood uses, (B, P)."""
    if isinstance(likelihood, Bernoulli | UnitGaussian):
        return x.float().reshape(len(x), -1)
    if isinstance(likelihood, TokenCategorical) and x.is_floating_point():
        return x.float().flatten(1)
    return x.float() if x.is_floating_point() else x


def mean_loss(likelihood: Likelihood, outputs: Tensor, target: Tensor) -> Tensor:
    """Return the mean loss of `outputs` (T, B, P), as loops usually compute it, a scalar.

    This is torch's cross_entropy (over the tokens that count), binary_cross_entropy_with_logits or
    mse_loss.
    """
    if isinstance(likelihood, Categorical):
        # One kernel computes the same number, which saves a fifth of a small network's step.
        return F.cross_entropy(outputs.flatten(0, 1), target.flatten())
    if isinstance(likelihood, Bernoulli):
        return F.binary_cross_entropy_with_logits(outputs, target)
    if isinstance(likelihood, UnitGaussian):
        return F.mse_loss(outputs, target)
    terms: Tensor | int = outputs[..., 0].numel()
    if isinstance(likelihood, TokenCategorical):
        terms = likelihood.counts(target).sum().clamp(min=1)
    return -likelihood.log_prob(outputs, target).sum() / terms


def padded(logits: Tensor, width: int, likelihood: Likelihood) -> Tensor:
    """Return logits (B, P) with `width` columns; the new ones have probability 0."""
    return F.pad(logits, (0, width - logits.shape[-1]), value=NEVER if likelihood.discrete else 0.0)


def _are_probabilities(logits: Tensor) -> bool:
    sums = logits.sum(-1)
    return bool((logits >= 0).all()) and bool(torch.isclose(sums, torch.ones_like(sums)).all())
