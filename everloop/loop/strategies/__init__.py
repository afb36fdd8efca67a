"""Strategies against forgetting, one file each."""

from everloop.loop.strategies.base import Strategy
from everloop.loop.strategies.ewc import EWC
from everloop.loop.strategies.replay import Replay

STRATEGIES: dict[str, type[Strategy]] = {"ewc": EWC, "replay": Replay}
"""Names on the command line. Add your own to run it by name."""

__all__ = ["EWC", "STRATEGIES", "Replay", "Strategy"]
