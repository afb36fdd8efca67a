"""What a network's outputs mean: a distribution over labels or actions."""

from __future__ import annotations

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from gymnasium import spaces
from torch import Tensor


class Likelihood(Protocol):
    """A family of distributions; `p` and `q` are outputs (..., P), x a label or action."""

    def size(self) -> int:
        """P, the number of outputs."""

    def log_prob(self, p: Tensor, x: Tensor) -> Tensor:
        """log p(x), shape (...)."""

    def sample(self, p: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """One draw for each row; from torch's global generator where none is given."""

    def mode(self, p: Tensor) -> Tensor:
        """The most probable label or action."""

    def entropy(self, p: Tensor) -> Tensor:
        """Entropy in nats, shape (...)."""

    def kl(self, p: Tensor, q: Tensor) -> Tensor:
        """KL(p || q) in nats, shape (...)."""


class Categorical(Likelihood):
    """Logits (..., classes); labels int64 (...)."""

    def __init__(self, classes: int) -> None:
        self.classes = classes

    def size(self) -> int:
        return self.classes

    def log_prob(self, p: Tensor, x: Tensor) -> Tensor:
        return -F.cross_entropy(p.reshape(-1, self.classes), x.reshape(-1), reduction="none").reshape(x.shape)

    def sample(self, p: Tensor, generator: torch.Generator | None = None) -> Tensor:
        flat = torch.softmax(p, -1).reshape(-1, self.classes)
        return torch.multinomial(flat, 1, generator=generator).reshape(p.shape[:-1])

    def mode(self, p: Tensor) -> Tensor:
        return p.argmax(-1)

    def entropy(self, p: Tensor) -> Tensor:
        log_p = torch.log_softmax(p, -1)
        return -(log_p.exp() * log_p).sum(-1)

    def kl(self, p: Tensor, q: Tensor) -> Tensor:
        log_p, log_q = torch.log_softmax(p, -1), torch.log_softmax(q, -1)
        return (log_p.exp() * (log_p - log_q)).sum(-1)


class Tags(Likelihood):
    """A class for each of L tokens: logits (..., L * classes); tags int64 (..., L), below 0 where a token has none.

    Probabilities are of the tokens that have a tag. Entropy and KL don't know which those are, and sum over all L.
    """

    def __init__(self, length: int, classes: int) -> None:
        self.length, self.classes, self.each = length, classes, Categorical(classes)

    def size(self) -> int:
        return self.length * self.classes

    def log_prob(self, p: Tensor, x: Tensor) -> Tensor:
        return self.each.log_prob(self._tokens(p), x.clamp(min=0)).where(x >= 0, 0.0).sum(-1)

    def sample(self, p: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return self.each.sample(self._tokens(p), generator)

    def mode(self, p: Tensor) -> Tensor:
        return self.each.mode(self._tokens(p))

    def entropy(self, p: Tensor) -> Tensor:
        return self.each.entropy(self._tokens(p)).sum(-1)

    def kl(self, p: Tensor, q: Tensor) -> Tensor:
        return self.each.kl(self._tokens(p), self._tokens(q)).sum(-1)

    def _tokens(self, p: Tensor) -> Tensor:
        return rearrange(p, "... (l c) -> ... l c", c=self.classes)


class Gaussian(Likelihood):
    """Diagonal Gaussian. Outputs (..., 2 * dims): the mean, then s with log std = LOW + (HIGH - LOW) * sigmoid(s + 1).

    All in the action's own units, so actions should be scaled to about [-1, 1]. The bounds, e^-0.7 = 0.5 to 1, keep
    a policy able to explore a later task however sure it was of an earlier one.
    """

    LOW, HIGH = -0.7, 0.0

    def __init__(self, dims: int) -> None:
        self.dims = dims

    def size(self) -> int:
        return 2 * self.dims

    def split(self, p: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation, each (..., dims)."""
        mean, s = torch.split(p, self.dims, -1)
        return mean, self.LOW + (self.HIGH - self.LOW) * torch.sigmoid(s + 1.0)

    def log_prob(self, p: Tensor, x: Tensor) -> Tensor:
        mean, log_std = self.split(p)
        z = (x - mean) * torch.exp(-log_std)
        return -(0.5 * z * z + log_std).sum(-1) - 0.5 * self.dims * math.log(2 * math.pi)

    def sample(self, p: Tensor, generator: torch.Generator | None = None) -> Tensor:
        mean, log_std = self.split(p)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        return mean + log_std.exp() * noise

    def mode(self, p: Tensor) -> Tensor:
        return self.split(p)[0]

    def entropy(self, p: Tensor) -> Tensor:
        return self.split(p)[1].sum(-1) + 0.5 * self.dims * (1 + math.log(2 * math.pi))

    def kl(self, p: Tensor, q: Tensor) -> Tensor:
        (mean_p, log_p), (mean_q, log_q) = self.split(p), self.split(q)
        ratio, shift = torch.exp(2 * (log_p - log_q)), (mean_p - mean_q) * torch.exp(-log_q)
        return (log_q - log_p + 0.5 * (ratio + shift * shift - 1)).sum(-1)


def likelihood_for(action_space: spaces.Space[object]) -> Likelihood:
    """Categorical for Discrete, Tags for MultiDiscrete, Gaussian for a flat Box. Raises ValueError for anything else."""
    if isinstance(action_space, spaces.Discrete) and action_space.start == 0:
        return Categorical(int(action_space.n))
    if isinstance(action_space, spaces.MultiDiscrete) and action_space.nvec.ndim == 1 and len(set(action_space.nvec.tolist())) == 1:
        return Tags(len(action_space.nvec), int(action_space.nvec[0]))
    if isinstance(action_space, spaces.Box) and len(action_space.shape) == 1:
        return Gaussian(action_space.shape[0])
    raise ValueError(f"action space is {action_space}, allowed: Discrete from 0, MultiDiscrete of equal numbers, or a flat Box")
