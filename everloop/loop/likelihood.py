"""Likelihoods: the distribution over labels or actions that a network's outputs parametrize."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from einops import rearrange
from gymnasium import spaces
from torch import Tensor


class Likelihood(Protocol):
    """A family of distributions over labels or actions x.

    Its parameters p and q are outputs of a network, (..., P).
    """

    discrete: bool
    """True if p are logits, which a temperature can soften."""

    @property
    def latent(self) -> Likelihood:
        """The distribution of a variable of which x is a fixed one-to-one function; by default x.

        Both have the same parameters, and the same score d log p / dp for the same draw.
        """
        return self

    def size(self) -> int:
        """Return P, the number of outputs."""

    def log_prob(self, p: Tensor, x: Tensor) -> Tensor:
        """Return log p(x), shape (...)."""

    def sample(self, p: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw one x for each batch element, by torch's global generator if none is given."""

    def mode(self, p: Tensor) -> Tensor:
        """Return the most probable label or action."""

    def entropy(self, p: Tensor) -> Tensor:
        """Return the entropy in nats, shape (...)."""

    def kl(self, p: Tensor, q: Tensor) -> Tensor:
        """Return KL(p || q) in nats, shape (...)."""


class Categorical(Likelihood):
    """softmax(p / temperature) over classes; logits p (..., classes), labels int64 (...).

    Args:
        classes: Number of classes, 1 or more.
        temperature: Above 0 and finite; 1 for logits. If p holds action values, this is their
            Boltzmann policy.

    Raises:
        ValueError: If the temperature is out of range.
    """

    discrete = True

    def __init__(self, classes: int, temperature: float = 1.0) -> None:
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature is {temperature}; it must be finite and above 0")
        self.classes, self.temperature = classes, temperature

    def logits(self, p: Tensor) -> Tensor:
        """Return p / temperature, the input of the softmax."""
        return p if self.temperature == 1.0 else p / self.temperature

    def size(self) -> int:
        return self.classes

    def log_prob(self, p: Tensor, x: Tensor) -> Tensor:
        logits = self.logits(p).reshape(-1, p.shape[-1])
        return -F.cross_entropy(logits, x.reshape(-1), reduction="none").reshape(x.shape)

    def sample(self, p: Tensor, generator: torch.Generator | None = None) -> Tensor:
        flat = torch.softmax(self.logits(p), -1).reshape(-1, self.classes)
        return torch.multinomial(flat, 1, generator=generator).reshape(p.shape[:-1])

    def mode(self, p: Tensor) -> Tensor:
        return p.argmax(-1)

    def entropy(self, p: Tensor) -> Tensor:
        log_p = torch.log_softmax(self.logits(p), -1)
        return -(log_p.exp() * log_p).sum(-1)

    def kl(self, p: Tensor, q: Tensor) -> Tensor:
        log_p, log_q = (torch.log_softmax(self.logits(z), -1) for z in (p, q))
        return (log_p.exp() * (log_p - log_q)).sum(-1)


class TokenCategorical(Likelihood):
    """A class for each of L tokens: logits (..., L * classes), tags int64 (..., L).

    A token without a tag, such as padding, has one below 0, or `ignore`, and does not count in
    log_prob. Entropy and KL can't know these tokens, so they sum over all L. `Model.mean_kl` leaves
    them out.

    Args:
        length: L, the number of tokens, 1 or more.
        classes: Number of classes of a token, 1 or more.
        ignore: One more tag that does not count, such as that of padding.
    """

    discrete = True

    def __init__(self, length: int, classes: int, ignore: int = -100) -> None:
        self.length, self.classes, self.ignore = length, classes, ignore
        self.each = Categorical(classes)

    def counts(self, x: Tensor) -> Tensor:
        """Return True for each token that has a tag, (..., L)."""
        return (x >= 0) & (x != self.ignore)

    def size(self) -> int:
        return self.length * self.classes

    def log_prob(self, p: Tensor, x: Tensor) -> Tensor:
        counts = self.counts(x)
        return self.each.log_prob(self._tokens(p), x.where(counts, 0)).where(counts, 0.0).sum(-1)

    def sample(self, p: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return self.each.sample(self._tokens(p), generator)

    def mode(self, p: Tensor) -> Tensor:
        return self.each.mode(self._tokens(p))

    def entropy(self, p: Tensor) -> Tensor:
        return self.each.entropy(self._tokens(p)).sum(-1)

    def kl(self, p: Tensor, q: Tensor) -> Tensor:
        return self.token_kl(p, q).sum(-1)

    def token_kl(self, p: Tensor, q: Tensor) -> Tensor:
        """Return KL(p || q) of each token in nats, (..., L)."""
        return self.each.kl(self._tokens(p), self._tokens(q))

    def _tokens(self, p: Tensor) -> Tensor:
        """Return the logits of each token, (..., L, classes)."""
        return rearrange(p, "... (l c) -> ... l c", c=self.classes)


class MultiCategorical(Likelihood):
    """Independent choices: logits (..., n_1 + n_2 + ...) of all, actions int64 (..., choices).

    Args:
        sizes: Number of options of each choice, 1 or more.
    """

    discrete = True

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = [int(n) for n in sizes]
        self.each = [Categorical(n) for n in self.sizes]

    def size(self) -> int:
        return sum(self.sizes)

    def log_prob(self, p: Tensor, x: Tensor) -> Tensor:
        return self._sum(c.log_prob(z, i) for c, z, i in self._choices(p, x.unbind(-1)))

    def sample(self, p: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return torch.stack([c.sample(z, generator) for c, z in self._choices(p)], -1)

    def mode(self, p: Tensor) -> Tensor:
        return torch.stack([c.mode(z) for c, z in self._choices(p)], -1)

    def entropy(self, p: Tensor) -> Tensor:
        return self._sum(c.entropy(z) for c, z in self._choices(p))

    def kl(self, p: Tensor, q: Tensor) -> Tensor:
        others = torch.split(q, self.sizes, -1)
        return self._sum(c.kl(z, other) for c, z, other in self._choices(p, others))

    def _choices(self, p: Tensor, *more: Sequence[Tensor]) -> Iterator[tuple[Any, ...]]:
        """Yield the distribution of each choice, its logits, and its part of each of `more`."""
        return zip(self.each, torch.split(p, self.sizes, -1), *more, strict=True)

    @staticmethod
    def _sum(terms: Iterator[Tensor]) -> Tensor:
        return torch.stack(list(terms)).sum(0)


class Bernoulli(Likelihood):
    """P independent yes-or-no labels: logits (..., P), labels (..., P) from 0 to 1.

    Args:
        labels: P, the number of labels of an example, 1 or more; 1 for binary classification.
    """

    discrete = True

    def __init__(self, labels: int = 1) -> None:
        self.labels = labels

    def size(self) -> int:
        return self.labels

    def log_prob(self, p: Tensor, x: Tensor) -> Tensor:
        """Return sum of x log sigmoid(p) + (1 - x) log sigmoid(-p), shape (...)."""
        return -F.binary_cross_entropy_with_logits(p, x.to(p.dtype), reduction="none").sum(-1)

    def sample(self, p: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return torch.bernoulli(torch.sigmoid(p), generator=generator)

    def mode(self, p: Tensor) -> Tensor:
        return (p > 0).to(p.dtype)

    def entropy(self, p: Tensor) -> Tensor:
        return -self.log_prob(p, torch.sigmoid(p))

    def kl(self, p: Tensor, q: Tensor) -> Tensor:
        x = torch.sigmoid(p)
        return self.log_prob(p, x) - self.log_prob(q, x)


class UnitGaussian(Likelihood):
    """N(p, 1) for each of P numbers: means p and numbers x, both (..., P).

    Its negative log-likelihood is half the squared error, up to a constant.

    Args:
        dims: P, the number of numbers of an example, 1 or more.
    """

    discrete = False

    def __init__(self, dims: int = 1) -> None:
        self.dims = dims

    def size(self) -> int:
        return self.dims

    def log_prob(self, p: Tensor, x: Tensor) -> Tensor:
        return -0.5 * ((x - p).square() + math.log(2 * math.pi)).sum(-1)

    def sample(self, p: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return p + torch.randn(p.shape, generator=generator, device=p.device, dtype=p.dtype)

    def mode(self, p: Tensor) -> Tensor:
        return p

    def entropy(self, p: Tensor) -> Tensor:
        return p.new_full(p.shape[:-1], 0.5 * p.shape[-1] * (1 + math.log(2 * math.pi)))

    def kl(self, p: Tensor, q: Tensor) -> Tensor:
        return 0.5 * (p - q).square().sum(-1)


class Gaussian(Likelihood):
    """Diagonal Gaussian. Outputs (..., 2 * dims) hold the mean, then s.

        log std = LOW + (HIGH - LOW) * sigmoid(s + 1)

    Mean and std are in the network's units, in which bounded actions are from -1 to 1. The bounds
    of std, e^-0.7 = 0.5 and 1, keep a policy able to explore a later task, even if it was certain
    in an earlier one.

    Args:
        dims: Number of dimensions of an action, 1 or more.
    """

    discrete = False
    LOW, HIGH = -0.7, 0.0

    def __init__(self, dims: int) -> None:
        self.dims = dims

    def size(self) -> int:
        return 2 * self.dims

    def split(self, p: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the log standard deviation, each (..., dims)."""
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


class ClampedGaussian(Gaussian):
    """Diagonal Gaussian. Outputs (..., 2 * dims) hold the mean, then the log standard deviation.

    The log standard deviation is bounded to [-20, 2], as in Stable-Baselines3's SAC.
    """

    LOW, HIGH = -20.0, 2.0

    def split(self, p: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = torch.split(p, self.dims, -1)
        return mean, log_std.clamp(self.LOW, self.HIGH)


class FreeGaussian(Gaussian):
    """Diagonal Gaussian whose log standard deviation has no bounds, as in Stable-Baselines3's PPO.

    Outputs (..., 2 * dims) hold the mean, then the log standard deviation.
    """

    def split(self, p: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = torch.split(p, self.dims, -1)
        return mean, log_std


class SquashedGaussian(ClampedGaussian):
    """The policy of SAC: tanh of a diagonal Gaussian, stretched to the range of actions.

        action = low + (high - low) * (tanh(u) + 1) / 2,   u ~ N(mean, std^2)

    Haarnoja et al. 2018, appendix C. Outputs (..., 2 * dims) hold the mean of u, then its log
    standard deviation, as in `ClampedGaussian`, the distribution of u. The KL divergence is that of
    u, because squashing is one to one. Near the ends of the range u can't be recovered from an
    action: in float32 for |u| above 8. There log_prob takes the most likely u beyond |u| = 8.3.

    Args:
        low: Lowest action, (dims,).
        high: Highest action, (dims,).

    Raises:
        ValueError: If a range is empty or not finite.
    """

    EPSILON = 1e-6  # keeps the log of the slope of tanh finite, as in Stable-Baselines3

    def __init__(self, low: npt.ArrayLike, high: npt.ArrayLike) -> None:
        self.low, self.high = torch.as_tensor(np.asarray(low)), torch.as_tensor(np.asarray(high))
        if not bool(torch.isfinite(self.high - self.low).all()) or not bool(
            (self.high > self.low).all()
        ):
            raise ValueError(
                f"actions range from {self.low.tolist()} to {self.high.tolist()}; bounds must be "
                "finite, each low below its high"
            )
        super().__init__(len(self.low))

    @property
    def latent(self) -> Likelihood:
        """The distribution of u."""
        return ClampedGaussian(self.dims)

    def stretch(self, y: Tensor) -> Tensor:
        """Map y from [-1, 1] to the range of actions."""
        low, high = self.low.to(y), self.high.to(y)
        return low + 0.5 * (y + 1.0) * (high - low)

    def log_prob(self, p: Tensor, x: Tensor) -> Tensor:
        low, high = self.low.to(p), self.high.to(p)
        limit = 1.0 - torch.finfo(p.dtype).eps
        y = (2.0 * (x - low) / (high - low) - 1.0).clamp(-limit, limit)
        slope = torch.log(1.0 - y * y + self.EPSILON) + torch.log(0.5 * (high - low))
        mean, u = self.split(p)[0].detach(), torch.atanh(y)
        u = u.where(y < limit, u.maximum(mean)).where(y > -limit, u.minimum(mean))
        return super().log_prob(p, u) - slope.sum(-1)

    def sample(self, p: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return self.stretch(torch.tanh(super().sample(p, generator)))

    def mode(self, p: Tensor) -> Tensor:
        """Return the image of the Gaussian's mode, SAC's action without exploration.

        It is not the mode of the squashed distribution.
        """
        return self.stretch(torch.tanh(super().mode(p)))

    def entropy(self, p: Tensor) -> Tensor:
        """Return H(u) + E[log |d action / du|], the expectation by Gauss-Hermite quadrature."""
        nodes, weights = (torch.as_tensor(v).to(p) for v in np.polynomial.hermite_e.hermegauss(64))
        mean, log_std = self.split(p)
        u = mean[..., None] + log_std.exp()[..., None] * nodes
        # log(1 - tanh(u)^2), in a form that is precise for large |u|
        log_slope = 2.0 * (math.log(2.0) - u.abs() - F.softplus(-2.0 * u.abs()))
        mean_log_slope = (log_slope * weights).sum(-1) / math.sqrt(2 * math.pi)
        log_range = torch.log(0.5 * (self.high - self.low)).to(p)
        return super().entropy(p) + (mean_log_slope + log_range).sum(-1)


def likelihood_for(action_space: spaces.Space[object]) -> Likelihood:
    """Return the likelihood for an action space, of actions in the network's units.

    Categorical for Discrete, Gaussian for a flat Box. For a flat MultiDiscrete and for MultiBinary
    it is a product of categorical distributions: TokenCategorical if all have the same number of
    options, else MultiCategorical.

    Raises:
        ValueError: For any other space.
    """
    if isinstance(action_space, spaces.Discrete):
        return Categorical(int(action_space.n))
    if isinstance(action_space, spaces.MultiBinary) and len(action_space.shape) == 1:
        return TokenCategorical(action_space.shape[0], 2)
    if isinstance(action_space, spaces.MultiDiscrete) and action_space.nvec.ndim == 1:
        sizes = action_space.nvec.tolist()
        equal = len(set(sizes)) == 1
        return TokenCategorical(len(sizes), sizes[0]) if equal else MultiCategorical(sizes)
    if isinstance(action_space, spaces.Box) and len(action_space.shape) == 1:
        return Gaussian(action_space.shape[0])
    raise ValueError(
        f"action space is {' '.join(str(action_space).split())}; it must be a Discrete, or a flat "
        "MultiDiscrete, MultiBinary or Box; flatten it"
    )
