"""Strategies against forgetting, and for staying able to learn: one file each.

A file added to this folder is found by itself: the strategy in it can be run by its name.
"""

import pkgutil
from importlib import import_module

from everloop.loop.strategies.base import Effect, Forward, Strategy, Traits


def _strategies() -> dict[str, type[Strategy]]:
    """Return the public strategies of all modules in this folder by their names."""
    found = {}
    for info in pkgutil.iter_modules(__path__):
        module = import_module(f"{__name__}.{info.name}")
        for cls in vars(module).values():
            ours = isinstance(cls, type) and cls.__module__ == module.__name__
            if ours and issubclass(cls, Strategy) and cls.__name__[0] != "_":
                found[cls.name] = cls
    del found[Strategy.name]
    return dict(sorted(found.items()))


STRATEGIES: dict[str, type[Strategy]] = _strategies()
"""Names on the command line. Add your own to run it by name."""

__all__ = ["STRATEGIES", "Effect", "Forward", "Strategy", "Traits"]
