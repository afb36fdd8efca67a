"""Ready-made sequences of tasks in known environments, registered with Gymnasium."""

from everloop.envs.families.classic_control import CLASSIC_CONTROL
from everloop.envs.families.family import Family

FAMILIES: dict[str, Family] = {**CLASSIC_CONTROL}
"""Registered id -> family."""

__all__ = ["FAMILIES", "Family"]
