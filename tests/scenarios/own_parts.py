"""A user's own parts, found by path: strategies, networks, and scenarios with all settings."""

import enum
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from everloop.loop import Batch, Learner, Strategy
from everloop.scenarios import SplitDigits, SwitchingPlant


class Slow(Strategy):
    """Scales every gradient.

    Args:
        factor: Factor for the gradients, 0 or more.
    """

    def __init__(self, factor: float = 0.5) -> None:
        if factor < 0:
            raise ValueError(f"factor is {factor}; it must be 0 or more")
        self.factor = factor

    def edit_gradients(self, batch: Batch, learner: Learner) -> None:
        for p in learner.weights().values():
            if p.grad is not None:
                p.grad *= self.factor


class Typo(Strategy):
    """Its hook is misspelled."""

    def edit_gradient(self, learner: Learner, batch: Batch | None) -> None: ...


class Idle(Strategy):
    """Does nothing."""


class Net(nn.Module):
    """A plain torch network, independent of everloop."""

    def __init__(self, shape: tuple[int, int, int], width: int = 16) -> None:
        super().__init__()
        channels, height, wide = shape
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(channels * height * wide, width), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        assert x.dtype == torch.float32
        assert 0 <= x.min() <= x.max() <= 1
        features: Tensor = self.layers(x)
        return features


class NoShape(nn.Module):
    """A network without required arguments, whose output is feature maps."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.conv = nn.LazyConv2d(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        maps: Tensor = self.conv(x)
        return maps


class Wrong(nn.Module):
    """A network whose output has the wrong shape."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sum()


class Color(enum.Enum):
    red = 1
    green = 2


@dataclass
class Painted(SplitDigits):
    """Digits, with settings of many types.

    Args:
        color: A member of an enum.
        place: A path.
        share: A NumPy number.
        names: A list.
    """

    # the built-in scenario has the same name; their runs must get different folders
    name: ClassVar[str] = "split-digits"
    color: Color = Color.red
    place: Path = Path("here/there")
    share: Any = field(default_factory=lambda: np.float32(0.5))
    names: list[str] = field(default_factory=lambda: ["a"])


class Failing(SplitDigits):
    """A scenario whose world raises an error after some steps."""

    name = "failing"
    summary = "a world that raises"

    def make_world(self, split: Any, num_envs: int, seed: int) -> Any:
        world: Any = super().make_world(split, num_envs, seed)
        if split == "train":
            step, left = world.step, [15]

            def failing(actions: Any) -> Any:
                left[0] -= 1
                if left[0] < 0:
                    raise RuntimeError("the sensor is\nunplugged")
                return step(actions)

            world.step = failing
        return world


@dataclass
class Unscaled(SwitchingPlant):
    """A plant without reference returns."""

    name: ClassVar[str] = "unscaled-plant"

    def make_world(self, split: Any, num_envs: int, seed: int) -> Any:
        world: Any = super().make_world(split, num_envs, seed)
        world.reference = lambda task: (float("nan"), float("nan"))
        return world
