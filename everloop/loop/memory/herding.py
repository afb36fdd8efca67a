"""Herding: exemplars whose mean stays close to the mean of their class."""

from __future__ import annotations

import torch
from torch import Tensor


def herding(features: Tensor, count: int) -> Tensor:
    """Return the indices of iCaRL's exemplars, best first.

    Rebuffi et al. 2017, algorithm 4:

        p_k = argmin_x || mu - (phi(x) + sum_(j < k) phi(p_j)) / k ||,   no example twice

    Args:
        features: phi of the examples of one class, (n, size).
        count: Number of exemplars, from 1 to n.

    Returns:
        Row indices of `features`, int64 (count,), on its device.

    Raises:
        ValueError: If `count` is not in 1 to n.
    """
    if not 1 <= count <= len(features):
        raise ValueError(f"count is {count}; it must be from 1 to {len(features)}")
    device = features.device
    # In double precision, the difference of large numbers below is as precise as the distance.
    features = features.cpu().double()
    mean, squares = features.mean(0), features.square().sum(1)
    total = torch.zeros_like(features[0])
    left = torch.ones(len(features), dtype=torch.bool)
    order = []
    for k in range(1, count + 1):
        # k^2 times the squared distance, without the terms that are the same for every example
        distances = squares - 2 * features @ (k * mean - total)
        order.append(int(distances.masked_fill(~left, torch.inf).argmin()))
        left[order[-1]] = False
        total = total + features[order[-1]]
    return torch.tensor(order, device=device)
