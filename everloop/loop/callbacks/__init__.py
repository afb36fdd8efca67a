"""Callbacks that come with everloop."""

from everloop.loop.callbacks.divergence import Divergence

__all__ = ["Divergence"]
