"""Random numbers of a strategy's own, so that nothing else that is random notices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from everloop.loop.learners.learner import Learner


def next_seed(own: torch.Generator) -> int:
    """A seed drawn from the strategy's generator."""
    return int(torch.randint(2**62, (), generator=own))


def generator_for(learner: Learner, own: torch.Generator) -> torch.Generator:
    """A generator where the network is, seeded from the strategy's own."""
    return torch.Generator(learner.device).manual_seed(next_seed(own))


def unnoticed(learner: Learner) -> AbstractContextManager[None]:
    """A context after which torch's global generators are as they were before."""
    return torch.random.fork_rng(devices=[learner.device] if learner.device.type == "cuda" else [])


@contextmanager
def own_draws(learner: Learner, own: torch.Generator) -> Iterator[None]:
    """While the context lasts, torch's global generators are seeded from the strategy's own; then they are as they were."""
    with unnoticed(learner):
        torch.manual_seed(next_seed(own))
        yield
