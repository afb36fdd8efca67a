"""The diagonal Fisher information: the mean of squared per-example gradients."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from everloop.loop.batch import Batch
from everloop.loop.importance.per_example import Score, mean_powers
from everloop.loop.likelihood import Categorical
from everloop.loop.model import Model


def diagonal_fisher(
    model: Model,
    batches: Iterable[Batch],
    generator: torch.Generator | None = None,
    by_hooks: bool = True,
    exact: bool = False,
) -> dict[str, Tensor]:
    """Return the diagonal of the Fisher information for each of `model.weights()`.

        F_i = mean over examples of (d log p(x | example) / d w_i)^2

    Args:
        model: The model with these weights.
        batches: Examples, at least one in all.
        generator: Draws x, a label or an action, from the model, which gives the true Fisher
            information. If None, x is the label or action in the batch, which gives the "empirical
            Fisher" (Kunstner et al. 2019 discuss the difference). Unused if `exact`.
        by_hooks: See `mean_powers`, also for the cost.
        exact: Average the square over all classes with the model's probabilities, in place of a
            draw. This is what draws converge to, at the cost of one backward pass per class.

    Returns:
        F by the name of the weight, in its shape and dtype; 0 or more.

    Raises:
        ValueError: If there are no examples.
    """
    score: Score
    if exact:
        score = every_class(model)
    else:

        def score(batch: Batch) -> Tensor:
            return model.log_likelihood(batch, generator)[None]

    return mean_powers(model, batches, score, 2, by_hooks)


def every_class(model: Model) -> Score:
    """Return a `Score` whose squared gradients sum to the exact Fisher information.

        sum_c p_c (d log p_c)^2 = sum_c (d sqrt(p_c) log p_c)^2

    The p_c under the root is treated as a constant. The model must pass `check_exact`.
    """

    def score(batch: Batch) -> Tensor:
        assert isinstance(model.likelihood, Categorical)
        log_p = torch.log_softmax(model.likelihood.logits(model.outputs(batch)), -1)
        return (log_p.detach().exp().sqrt() * log_p)[0].T

    return score


def check_exact(model: Model) -> None:
    """Check that the exact Fisher information can be computed in `model`.

    Raises:
        ValueError: If the outputs are not classes or discrete actions, or if an example has
            several steps.
    """
    if not isinstance(model.likelihood, Categorical) or model.sequence_length > 1:
        raise ValueError(
            "fisher is 'exact', which needs classes or discrete actions and examples of one step; "
            "use sampled or empirical"
        )
