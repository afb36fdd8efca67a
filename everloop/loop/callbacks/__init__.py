"""Callbacks: TensorBoard and divergence."""

from everloop.loop.callbacks.divergence import Divergence

__all__ = ["Divergence"]
