"""Image networks that published tables use, as backbones: uint8 rows (R, H, W, C) -> features (R,
size).

What they do with pixel values is fixed, never fitted to a data set: its statistics would carry
something of other tasks, or of test images, into each one.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

ImageShape = Sequence[int]
Norm = Literal["batch", "group"]


def precision(module: nn.Module) -> torch.dtype:
    """That of the weights; single where there are none."""
    return next((p.dtype for p in module.parameters()), torch.float32)


def standard_pixels(x: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 (R, H, W, C) -> float (R, C, H, W), (x / 255 - 0.5) / 0.25: about standardised for
    natural images.
    """
    return rearrange(x, "r h w c -> r c h w").to(dtype, copy=True).sub_(127.5).div_(63.75)


def pixels_to_1(x: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 (R, ...) -> float (R, size), x / 255."""
    return x.flatten(1).to(dtype, copy=True).div_(255.0)  # a copy: floats would be the caller's own


def normalisation(channels: int, norm: Norm) -> nn.Module:
    """Batch norm; or group norm (Wu & He 2018), by groups of 8 channels or as near as
    divides them.
    """
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm != "group":
        raise ValueError(f"norm is {norm!r}, allowed: batch, group")
    return nn.GroupNorm(
        max(g for g in range(1, max(1, channels // 8) + 1) if channels % g == 0), channels
    )


def through(block: nn.Module, x: Tensor, recompute: bool) -> Tensor:
    """block(x); with `recompute` it keeps no activations and computes them again on the way
    back.
    """
    result: Tensor = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
    return result


class MLP(nn.Module):
    """Fully connected ReLU layers on the flattened image, pixels from 0 to 1.

    2 x 400: van de Ven et al. 2022, section "Methods" (MNIST). 2 x 1000: permuted MNIST there. 2 x
    100: Lopez-Paz & Ranzato 2017. Without hidden layers the features are the pixels, and a head
    makes a linear classifier. Raises ValueError for layers without units.
    """

    def __init__(self, input_shape: ImageShape, hidden: Sequence[int] = (400, 400)) -> None:
        super().__init__()
        if any(units < 1 for units in hidden):
            raise ValueError(f"hidden is {list(hidden)}, allowed: 1 or more units in each layer")
        sizes = [flat_size(input_shape), *hidden]
        self.layers, self.size = _fully_connected(sizes), sizes[-1]

    def forward(self, x: Tensor) -> Tensor:
        """x uint8 (R, ...) -> (R, size)."""
        features: Tensor = self.layers(pixels_to_1(x, precision(self)))
        return features


class _BasicBlock(nn.Module):
    """relu(x' + norm(conv(relu(norm(conv(x)))))), x' the input, by a 1x1 convolution where its
    shape changes (He et al. 2016).
    """

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            normalisation(outputs, norm),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            normalisation(outputs, norm),
        )
        self.stride = stride
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, bias=False), normalisation(outputs, norm)
            )

    def forward(self, x: Tensor) -> Tensor:
        # Subsampling before the 1x1 convolution is the same as giving it the stride. Its strided
        # backward pass
        # of fewer than 7 channels writes outside its memory in torch 2.13, on CPUs that have no
        # AVX-512.
        skipped = x[:, :, :: self.stride, :: self.stride]
        return F.relu(self.shortcut(skipped) + self.body(x))


class ResNet18(nn.Module):
    """ResNet-18 for small images: a 3x3 convolution, 4 stages of 2 blocks, mean over the image (He
    et al. 2016).

    width: filters of the first stage, doubled in each later one. 64 is the full network; 20 the
        reduced one of Lopez-Paz & Ranzato 2017, used by most tables of online continual learning.
    norm: "batch", as published: its running statistics follow the stream, and so forget earlier
        tasks as weights do; in training each image is normalised by those that happen to be in its
        batch. "group" has neither.
    checkpointing: recompute each block's activations on the way back.
    """

    def __init__(self, input_shape: ImageShape, width: int = 64, norm: Norm = "batch") -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width is {width}, allowed: 1 or more")
        self.checkpointing = False
        self.stem = nn.Sequential(
            nn.Conv2d(input_shape[2], width, 3, 1, 1, bias=False),
            normalisation(width, norm),
            nn.ReLU(),
        )
        blocks, last = [], width
        for stage in range(4):
            for block in range(2):
                outputs, stride = width * 2**stage, 2 if stage and not block else 1
                blocks.append(_BasicBlock(last, outputs, stride, norm))
                last = outputs
        self.blocks, self.size = nn.ModuleList(blocks), last

    def forward(self, x: Tensor) -> Tensor:
        """x uint8 (R, H, W, C) -> (R, 8 * width)."""
        x = self.stem(standard_pixels(x, precision(self)))
        for block in self.blocks:
            x = through(block, x, self.checkpointing and self.training)
        return x.mean((2, 3))


class ConvNet5(nn.Module):
    """Five convolutions, then two fully connected layers of 2000 (van de Ven et al. 2022,
    "Methods", CIFAR-100).

    3x3 kernels, 16, 32, 64, 128, 256 channels, batch norm and ReLU; the first keeps the size, the
    others halve it. Their protocol trains the convolutions on CIFAR-10 beforehand and then keeps
    them as they are: `freeze_convolutions(trained.convolutions.state_dict())`.
    """

    def __init__(self, input_shape: ImageShape, hidden: Sequence[int] = (2000, 2000)) -> None:
        super().__init__()
        self.checkpointing, self.frozen = False, False
        height, width, depth = input_shape
        layers = []
        for i, channels in enumerate((16, 32, 64, 128, 256)):
            stride = 2 if i else 1
            layers.append(
                nn.Sequential(
                    nn.Conv2d(depth, channels, 3, stride, 1, bias=False),
                    nn.BatchNorm2d(channels),
                    nn.ReLU(),
                )
            )
            height, width, depth = -(-height // stride), -(-width // stride), channels
        self.convolutions = nn.ModuleList(layers)
        sizes = [height * width * depth, *hidden]
        self.layers, self.size = _fully_connected(sizes), sizes[-1]

    def freeze_convolutions(self, state: dict[str, Tensor] | None = None) -> None:
        """Keep the convolutions, and their batch norms' statistics, as they are from now on; load
        `state` first if given.
        """
        if state is not None:
            self.convolutions.load_state_dict(state)
        self.convolutions.requires_grad_(False)
        self.frozen = True
        self.train(self.training)

    def train(self, mode: bool = True) -> ConvNet5:
        """As every module, but for frozen batch norms, which stay in evaluation."""
        super().train(mode)
        if self.frozen:
            self.convolutions.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """x uint8 (R, H, W, C) -> (R, size)."""
        x = standard_pixels(x, precision(self))
        for block in self.convolutions:
            x = through(block, x, self.checkpointing and self.training and not self.frozen)
        features: Tensor = self.layers(x.flatten(1))
        return features


def _fully_connected(sizes: Sequence[int]) -> nn.Sequential:
    """Linear layers, a ReLU after each."""
    return nn.Sequential(
        *[layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
    )


def flat_size(shape: ImageShape) -> int:
    size = 1
    for side in shape:
        size *= side
    return size
