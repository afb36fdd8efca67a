"""Memories of past examples."""

from everloop.loop.memory.reservoir import Reservoir

__all__ = ["Reservoir"]
