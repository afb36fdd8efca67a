"""Random numbers of a strategy's own, so that nothing else that is random notices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from everloop.loop.model import Model


def next_seed(own: torch.Generator) -> int:
    """A seed drawn from the strategy's generator."""
    return int(torch.randint(2**62, (), generator=own))


def generator_for(model: Model, own: torch.Generator) -> torch.Generator:
    """A generator where the network is, seeded from the strategy's own."""
    return torch.Generator(model.device).manual_seed(next_seed(own))


def preserve_rng_state(model: Model) -> AbstractContextManager[None]:
    """A context after which torch's global generators are as they were before."""
    return torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else [])


@contextmanager
def isolated_rng(model: Model, own: torch.Generator) -> Iterator[None]:
    """While the context lasts, torch's global generators are seeded from the strategy's own; then
    they are as they were.
    """
    with preserve_rng_state(model):
        torch.manual_seed(next_seed(own))
        yield
