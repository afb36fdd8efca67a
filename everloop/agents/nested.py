"""Continuum memory: a chain of blocks, each of which learns at its own frequency."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from torch import Tensor, nn

from everloop.agents.networks import ImageShape, normalisation, precision, standard_pixels, through

PERIODS = (1, 10, 100)


class ContinuumMemory(nn.Module):
    """A chain of residual blocks, one per frequency level.

        y = B_k(... B_2(B_1(x)))
        B(x) = x + W_2 gelu(W_1 norm(x))          vectors (..., size), W_1 to expansion * size units
        B(x) = x + conv3x3(gelu(norm(x)))         images (R, size, H, W), if `convolutional`

    Source: Behrouz et al. 2025, "Nested Learning", section on CMS. The module holds the blocks
    only; `everloop.loop.NestedOptimizer(optimizer, memory.levels())` makes them learn at different
    frequencies.

    Args:
        size: Size of the vectors, or number of channels of the images.
        periods: Steps between two updates of each block, 1 or more, in the order of the chain.
        expansion: Width of a vector block's hidden layer, as a multiple of `size`.
        convolutional: Whether the blocks are for images.

    Raises:
        ValueError: If there are no periods or one is below 1.
    """

    def __init__(
        self,
        size: int,
        periods: Sequence[int] = PERIODS,
        expansion: int = 4,
        convolutional: bool = False,
    ) -> None:
        super().__init__()
        if not periods or min(periods) < 1:
            raise ValueError(
                f"periods is {list(periods)}; it must hold at least one, each 1 or more"
            )
        self.periods = tuple(periods)
        self.checkpointing = False
        self.blocks = nn.ModuleList(
            _convolution(size) if convolutional else _perceptron(size, expansion) for _ in periods
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return y of the same shape as x."""
        for block in self.blocks:
            x = x + through(block, x, self.checkpointing and self.training)
        return x

    def levels(self) -> dict[int, list[nn.Parameter]]:
        """Return period -> the parameters of its blocks."""
        return levels_of(self)


def levels_of(module: nn.Module) -> dict[int, list[nn.Parameter]]:
    """Return period -> parameters, over all continuum memories inside `module`."""
    levels: dict[int, list[nn.Parameter]] = defaultdict(list)
    for memory in module.modules():
        if isinstance(memory, ContinuumMemory):
            for period, block in zip(memory.periods, memory.blocks, strict=True):
                levels[period] += block.parameters()
    return dict(levels)


class NestedConvNet(nn.Module):
    """A convolutional backbone made of continuum memories.

    It has a 3x3 stem; four stages with 1, 2, 4 and 8 times `width` channels, each of which halves
    the image and then passes it through a memory of 3x3 convolutions; the mean over the image; and
    a memory of perceptrons. The stem and the halving convolutions are in no memory and learn at
    every step. Group norm carries nothing from image to image. There are about 5, 20 and 80
    million weights at widths 32, 64 and 128. The convolutional form is not from the paper, which
    has perceptrons only.

    Args:
        input_shape: (H, W, C) of an image.
        width: Channels of the first stage, 1 or more.
        periods: Periods of every memory, see `ContinuumMemory`.

    Raises:
        ValueError: If the width or a period is below 1, or there are no periods.
    """

    def __init__(
        self, input_shape: ImageShape, width: int = 32, periods: Sequence[int] = PERIODS
    ) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width is {width}; it must be 1 or more")
        layers: list[nn.Module] = [nn.Conv2d(input_shape[2], width, 3, padding=1)]
        channels = width
        for stage in range(4):
            layers.append(nn.Conv2d(channels, width * 2**stage, 3, stride=2, padding=1))
            channels = width * 2**stage
            layers.append(ContinuumMemory(channels, periods, convolutional=True))
        self.stages = nn.Sequential(*layers, normalisation(channels, "group"), nn.GELU())
        self.memory = ContinuumMemory(channels, periods, expansion=6)
        self.size = channels

    def forward(self, x: Tensor) -> Tensor:
        """Return features (R, 8 * width) of images x, uint8 (R, H, W, C)."""
        maps = self.stages(standard_pixels(x, precision(self)))
        features: Tensor = self.memory(maps.mean((2, 3)))
        return features

    def levels(self) -> dict[int, list[nn.Parameter]]:
        """Return period -> the parameters of its blocks, over all memories."""
        return levels_of(self)


def _perceptron(size: int, expansion: int) -> nn.Module:
    return nn.Sequential(
        nn.LayerNorm(size),
        nn.Linear(size, expansion * size),
        nn.GELU(),
        nn.Linear(expansion * size, size),
    )


def _convolution(channels: int) -> nn.Module:
    return nn.Sequential(
        normalisation(channels, "group"), nn.GELU(), nn.Conv2d(channels, channels, 3, padding=1)
    )
