"""The examples whose mean stays nearest to their class's mean."""

from __future__ import annotations

import torch
from torch import Tensor


def herding(features: Tensor, count: int) -> Tensor:
    """The order in which iCaRL picks exemplars (Rebuffi et al. 2017, algorithm 4): int64 (count,),
    the first the best.

        p_k = argmin_x || mu - (phi(x) + sum_(j < k) phi(p_j)) / k ||,   no example twice

    features: (n, size), phi of the examples of one class. Raises ValueError for a count that is not
        in 1 to n.
    """
    if not 1 <= count <= len(features):
        raise ValueError(f"count is {count}, allowed: 1 to {len(features)}")
    device = features.device
    features = (
        features.cpu().double()
    )  # so that the difference of large numbers below is as good as the distance itself
    mean, total, squares = features.mean(0), torch.zeros_like(features[0]), features.square().sum(1)
    left = torch.ones(len(features), dtype=torch.bool)
    order = []
    for k in range(1, count + 1):
        distances = squares - 2 * features @ (
            k * mean - total
        )  # k^2 times the squared distance, but for what is the same for all
        order.append(int(distances.masked_fill(~left, torch.inf).argmin()))
        left[order[-1]] = False
        total = total + features[order[-1]]
    return torch.tensor(order, device=device)
