"""Replay memories: stores of past examples."""

from everloop.loop.memory.grouped import ClassBalanced, Informative, Ring, Uncertain
from everloop.loop.memory.herding import herding
from everloop.loop.memory.memory import Memory
from everloop.loop.memory.reservoir import Reservoir
from everloop.loop.memory.store import Store

MEMORIES: dict[str, type[Memory]] = {
    "reservoir": Reservoir,
    "class-balanced": ClassBalanced,
    "ring": Ring,
    "uncertain": Uncertain,
    "informative": Informative,
}
"""Replay memories by their name on the command line. Add your own to use it by name."""

__all__ = [
    "MEMORIES",
    "ClassBalanced",
    "Informative",
    "Memory",
    "Reservoir",
    "Ring",
    "Store",
    "Uncertain",
    "herding",
]
