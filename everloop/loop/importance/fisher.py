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
    """F_i = mean over examples of (d log p(x | example) / d w_i)^2, for each of `model.weights()`.

    x is drawn from the model if there is a generator (the Fisher information proper), else it is
    what the batch holds (the "empirical Fisher"; Kunstner et al. 2019 on the difference). With
    `exact` the square is averaged over all classes with the model's probabilities: what draws come
    to in the end, for a backward pass a class. See `mean_powers` for `by_hooks` and costs. Raises
    ValueError without any example.
    """
    score: Score
    if exact:
        score = every_class(model)
    else:

        def score(batch: Batch) -> Tensor:
            return model.log_likelihood(batch, generator)[None]

    return mean_powers(model, batches, score, 2, by_hooks)


def every_class(model: Model) -> Score:
    """The score whose squared gradients sum to the exact Fisher information.

    sum_c p_c (d log p_c)^2 = sum_c (d sqrt(p_c) log p_c)^2,   p_c under the root held constant
    """

    def score(batch: Batch) -> Tensor:
        assert isinstance(model.likelihood, Categorical)
        log_p = torch.log_softmax(model.likelihood.logits(model.outputs(batch)), -1)
        return (log_p.detach().exp().sqrt() * log_p)[0].T

    return score


def check_exact(model: Model) -> None:
    """Raise ValueError where the exact Fisher information is not to be had: it takes classes, one
    step an example.
    """
    if not isinstance(model.likelihood, Categorical) or model.sequence_length > 1:
        raise ValueError(
            "fisher is 'exact', which needs classes or discrete actions and examples of one step; "
            "use sampled or empirical"
        )
