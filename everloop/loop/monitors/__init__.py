"""Monitors watch the network drift."""

from everloop.loop.monitors.divergence import Divergence

__all__ = ["Divergence"]
