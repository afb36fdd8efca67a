"""A strategy's own random numbers, which leave all other random numbers unchanged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from everloop.loop.model import Model


def next_seed(own: torch.Generator) -> int:
    """Return a seed drawn from the strategy's generator."""
    return int(torch.randint(2**62, (), generator=own))


def generator_for(model: Model, own: torch.Generator) -> torch.Generator:
    """Return a generator on the model's device, seeded from the strategy's own."""
    return torch.Generator(model.device).manual_seed(next_seed(own))


def preserve_rng_state(model: Model) -> AbstractContextManager[None]:
    """Return a context that restores torch's global generators when it ends."""
    return torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else [])


@contextmanager
def isolated_rng(model: Model, own: torch.Generator) -> Iterator[None]:
    """Seed torch's global generators from the strategy's own, and restore them afterwards."""
    with preserve_rng_state(model):
        torch.manual_seed(next_seed(own))
        yield
