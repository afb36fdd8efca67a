"""Flushing denormals during a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def denormals_flushed() -> Iterator[None]:
    """Flush denormals: treat numbers below 1e-38 as 0.

    Adam's moments become denormal when gradients vanish, and a CPU is many times slower with such
    numbers (docs/results.md).
    """
    already = not bool(torch.tensor(1e-40) * 1)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(already)
