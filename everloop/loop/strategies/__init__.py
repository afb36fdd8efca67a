"""Strategies against forgetting and loss of plasticity, one file each.

A strategy in a new file of this folder is found automatically and can be run by its name.
"""

import pkgutil
from importlib import import_module

from everloop.loop.strategies.base import Effect, Forward, Strategy, Traits


def _strategies() -> dict[str, type[Strategy]]:
    """Return all public strategies in this folder, by name."""
    found = {}
    for info in pkgutil.iter_modules(__path__):
        module = import_module(f"{__name__}.{info.name}")
        for cls in vars(module).values():
            defined_here = isinstance(cls, type) and cls.__module__ == module.__name__
            if defined_here and issubclass(cls, Strategy) and cls.__name__[0] != "_":
                found[cls.name] = cls
    del found[Strategy.name]
    return dict(sorted(found.items()))


STRATEGIES: dict[str, type[Strategy]] = _strategies()
"""Strategies by their name on the command line. Add your own to run it by name."""

__all__ = ["STRATEGIES", "Effect", "Forward", "Strategy", "Traits"]
