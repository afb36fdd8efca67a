"""Normalisation of inputs by running statistics, which belong to the network."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Normalize = Literal["none", "running", "first-task"]
"""Whether to normalise, and over which experience: everything seen, or the first phase only."""


class RunningNorm(nn.Module):
    """Scales each number of a vector by the mean and variance of those seen so far.

        y = clip((x - mean) / sqrt(variance + EPSILON), -LIMIT, LIMIT)

    As `VecNormalize` of Stable-Baselines3, but the statistics are buffers: they are saved, copied
    and evaluated with the weights. A forward pass never changes them; only `update` does. So each
    example counts once, however often it is trained on. Before the first update y is clip(x).

    Args:
        size: Size of the vector, D.
    """

    EPSILON, LIMIT = 1e-8, 10.0
    running_mean: Tensor
    running_var: Tensor
    count: Tensor
    frozen: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(size))
        self.register_buffer("running_var", torch.ones(size))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("frozen", torch.zeros((), dtype=torch.bool))

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised vectors, of x (R, D)."""
        scaled = (x - self.running_mean) / torch.sqrt(self.running_var + self.EPSILON)
        return scaled.clamp(-self.LIMIT, self.LIMIT)

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Add the vectors x (R, D) to the statistics, unless they are frozen.

        With means m and variances v of n earlier and k new vectors (Chan et al. 1979):

            m = m_n + k / (n + k) (m_k - m_n)
            v = (n v_n + k v_k + n k / (n + k) (m_k - m_n)^2) / (n + k)
        """
        k = len(x)
        if k == 0 or self.frozen:
            return
        x = x.to(self.running_mean.dtype)
        n = self.count.to(x.dtype)
        shift = x.mean(0) - self.running_mean
        between = n * k / (n + k) * shift**2
        within = n * self.running_var + k * x.var(0, correction=0)
        self.running_var.copy_((within + between) / (n + k))
        self.running_mean += k / (n + k) * shift
        self.count += k
