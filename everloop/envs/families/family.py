"""A ready-made sequence of tasks as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Family:
    """A sequence of tasks in a known environment.

    Args:
        about: What its tasks are, in one line.
        arguments: Arguments of `EnvSequence`.
    """

    about: str
    arguments: Mapping[str, Any]
