"""Continuum memory: blocks in a chain, each meant to learn at a frequency of its own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from torch import Tensor, nn

from everloop.agents.networks import ImageShape, normalisation, precision, standard_pixels, through

PERIODS = (1, 10, 100)


class ContinuumMemory(nn.Module):
    """y = B_k(... B_2(B_1(x))), one residual block for each period (Behrouz et al. 2025, "Nested
    Learning", section on CMS).

        B(x) = x + W_2 gelu(W_1 norm(x))          vectors (..., size), W_1 to expansion * size units
        B(x) = x + conv3x3(gelu(norm(x)))         images (R, size, H, W), if `convolutional`

    Here are only the blocks: at which frequency they learn is the optimizer's business,
    `everloop.loop.NestedOptimizer(optimizer, memory.levels())`.
    periods: steps between changes of each block, in the chain's order. expansion: of the vectors'
    hidden layer. Raises ValueError for periods below 1 or none.
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
            raise ValueError(f"periods are {list(periods)}, allowed: one or more, each 1 or more")
        self.periods, self.checkpointing = tuple(periods), False
        self.blocks = nn.ModuleList(
            _convolution(size) if convolutional else _perceptron(size, expansion) for _ in periods
        )

    def forward(self, x: Tensor) -> Tensor:
        """x -> y of the same shape."""
        for block in self.blocks:
            x = x + through(block, x, self.checkpointing and self.training)
        return x

    def levels(self) -> dict[int, list[nn.Parameter]]:
        """Period -> the parameters of its blocks."""
        return levels_of(self)


def levels_of(module: nn.Module) -> dict[int, list[nn.Parameter]]:
    """Period -> parameters, over all continuum memories inside `module`."""
    levels: dict[int, list[nn.Parameter]] = defaultdict(list)
    for memory in module.modules():
        if isinstance(memory, ContinuumMemory):
            for period, block in zip(memory.periods, memory.blocks, strict=True):
                levels[period] += block.parameters()
    return dict(levels)


class NestedConvNet(nn.Module):
    """A convolutional network made of continuum memories, as a backbone: uint8 (R, H, W, C) -> (R,
    8 * width).

    A 3x3 stem, four stages of `width`, 2, 4, 8 times as many channels that halve the image and then
    pass it through a memory of 3x3 convolutions, the mean over the image, and a memory of
    perceptrons. About 5, 20 and 80 million weights at width 32, 64 and 128. Group norm: nothing is
    carried from image to image.
    periods: of every memory. The stem and the halvings are in no memory, and learn at every step.
    The convolutional form is ours: the paper has perceptrons only.
    """

    def __init__(
        self, input_shape: ImageShape, width: int = 32, periods: Sequence[int] = PERIODS
    ) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width is {width}, allowed: 1 or more")
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
        """x uint8 (R, H, W, C) -> (R, size)."""
        features: Tensor = self.memory(
            self.stages(standard_pixels(x, precision(self))).mean((2, 3))
        )
        return features

    def levels(self) -> dict[int, list[nn.Parameter]]:
        """Period -> the parameters of its blocks, in all memories."""
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
