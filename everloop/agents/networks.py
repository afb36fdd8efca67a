"""Image networks of published tables, as backbones from uint8 (R, H, W, C) to features (R, size).

The scaling of pixel values is fixed, never fitted to a data set. Fitted statistics would carry
information from other tasks or from test images into each task.
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
    """Return the dtype of the weights, or float32 if there are none."""
    return next((p.dtype for p in module.parameters()), torch.float32)


def standard_pixels(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Scale pixels to (x / 255 - 0.5) / 0.25, roughly standardised for natural images.

    Args:
        x: Images, uint8 (R, H, W, C).
        dtype: The dtype of the result.

    Returns:
        Float (R, C, H, W).
    """
    return rearrange(x, "r h w c -> r c h w").to(dtype, copy=True).sub_(127.5).div_(63.75)


def pixels_to_1(x: Tensor, dtype: torch.dtype, white: float = 1.0) -> Tensor:
    """Scale uint8 pixels x, (R, ...), to white * x / 255 and flatten them, (R, size)."""
    return x.flatten(1).to(dtype, copy=True).div_(255.0 / white)  # floats are the caller's: copy


def normalisation(channels: int, norm: Norm) -> nn.Module:
    """Return a normalisation layer for images with `channels` channels.

    Args:
        channels: Number of channels.
        norm: "batch"; or "group" (Wu & He 2018), with groups of 8 channels, or of the next larger
            number that divides them.

    Raises:
        ValueError: If `norm` is another one.
    """
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm != "group":
        raise ValueError(f"norm is {norm!r}; choose batch or group")
    groups = max(g for g in range(1, max(1, channels // 8) + 1) if channels % g == 0)
    return nn.GroupNorm(groups, channels)


def through(block: nn.Module, x: Tensor, recompute: bool) -> Tensor:
    """Return block(x); with `recompute` the backward pass recomputes the activations."""
    result: Tensor = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
    return result


class MLP(nn.Module):
    """Fully connected ReLU layers on the flattened image, with pixels from 0 to `white`.

    Published sizes: 2 x 400 (van de Ven et al. 2022, section "Methods", MNIST), 2 x 1000 (there,
    permuted MNIST), 2 x 100 (Lopez-Paz & Ranzato 2017). Without hidden layers the features are the
    pixels, and a head makes a linear classifier.

    Args:
        input_shape: Shape of one example.
        hidden: Units of each layer, 1 or more.
        white: Value of a white pixel, above 0; 255 leaves pixels unscaled.

    Raises:
        ValueError: If a layer has no units, or white is out of range.
    """

    def __init__(
        self, input_shape: ImageShape, hidden: Sequence[int] = (400, 400), white: float = 1.0
    ) -> None:
        super().__init__()
        if any(units < 1 for units in hidden):
            raise ValueError(f"hidden is {list(hidden)}; each layer needs 1 or more units")
        if not 0 < white < float("inf"):
            raise ValueError(f"white is {white}; it must be finite and above 0")
        sizes = [flat_size(input_shape), *hidden]
        self.layers = fully_connected(sizes)
        self.size = sizes[-1]
        self.white = white

    def forward(self, x: Tensor) -> Tensor:
        """Return features (R, size) of examples x, uint8 (R, ...)."""
        features: Tensor = self.layers(pixels_to_1(x, precision(self), self.white))
        return features


class _BasicBlock(nn.Module):
    """The basic residual block (He et al. 2016).

        y = relu(x' + norm(conv(relu(norm(conv(x))))))

    x' is the input, after a 1x1 convolution and a norm if the shape changes.
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
        # Subsampling before the 1x1 convolution is the same as a strided one. With fewer than 7
        # channels, the strided backward pass of torch 2.13 writes outside its memory on CPUs
        # without AVX-512.
        skipped = x[:, :, :: self.stride, :: self.stride]
        return F.relu(self.shortcut(skipped) + self.body(x))


class ResNet18(nn.Module):
    """ResNet-18 for small images (He et al. 2016).

    It has a 3x3 convolution, 4 stages of 2 blocks, and the mean over the image.

    Args:
        input_shape: (H, W, C) of an image.
        width: Filters of the first stage, 1 or more, doubled in each later one. 64 is the full
            network. 20 is the reduced one of Lopez-Paz & Ranzato 2017, which most tables of online
            continual learning use.
        norm: "batch", as published. Its running statistics follow the stream and thus forget
            earlier tasks as weights do; in training they depend on the other images of the batch.
            "group" has neither property.

    Attributes:
        checkpointing: Whether the backward pass recomputes the activations of each block.
        size: Number of features, 8 * width.

    Raises:
        ValueError: If the width is below 1 or the norm is unknown.
    """

    def __init__(self, input_shape: ImageShape, width: int = 64, norm: Norm = "batch") -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width is {width}; it must be 1 or more")
        self.checkpointing = False
        self.stem = nn.Sequential(
            nn.Conv2d(input_shape[2], width, 3, 1, 1, bias=False),
            normalisation(width, norm),
            nn.ReLU(),
        )
        blocks = []
        inputs = width
        for stage in range(4):
            outputs = width * 2**stage
            for block in range(2):
                stride = 2 if stage and not block else 1
                blocks.append(_BasicBlock(inputs, outputs, stride, norm))
                inputs = outputs
        self.blocks = nn.ModuleList(blocks)
        self.size = inputs

    def forward(self, x: Tensor) -> Tensor:
        """Return features (R, 8 * width) of images x, uint8 (R, H, W, C)."""
        x = self.stem(standard_pixels(x, precision(self)))
        for block in self.blocks:
            x = through(block, x, self.checkpointing and self.training)
        return x.mean((2, 3))


class ConvNet5(nn.Module):
    """Five convolutions, then fully connected layers (van de Ven et al. 2022, "Methods").

    The convolutions have 3x3 kernels, 16, 32, 64, 128 and 256 channels, batch norm and ReLU. The
    first keeps the size; the others halve it. The paper's protocol trains the convolutions on
    CIFAR-10 first and then freezes them: `freeze_convolutions(trained.convolutions.state_dict())`.

    Args:
        input_shape: (H, W, C) of an image.
        hidden: Units of each fully connected layer.

    Attributes:
        checkpointing: Whether the backward pass recomputes the activations of each convolution.
        frozen: True after `freeze_convolutions`.
        size: Number of features.
    """

    def __init__(self, input_shape: ImageShape, hidden: Sequence[int] = (2000, 2000)) -> None:
        super().__init__()
        self.checkpointing = False
        self.frozen = False
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
            height = -(-height // stride)
            width = -(-width // stride)
            depth = channels
        self.convolutions = nn.ModuleList(layers)
        sizes = [height * width * depth, *hidden]
        self.layers = fully_connected(sizes)
        self.size = sizes[-1]

    def freeze_convolutions(self, state: dict[str, Tensor] | None = None) -> None:
        """Freeze the convolutions and the statistics of their batch norms.

        Args:
            state: State of trained convolutions to load first.
        """
        if state is not None:
            self.convolutions.load_state_dict(state)
        self.convolutions.requires_grad_(False)
        self.frozen = True
        self.train(self.training)

    def train(self, mode: bool = True) -> ConvNet5:
        """Set the mode as in every module; frozen batch norms stay in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.convolutions.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Return features (R, size) of images x, uint8 (R, H, W, C)."""
        x = standard_pixels(x, precision(self))
        for block in self.convolutions:
            x = through(block, x, self.checkpointing and self.training and not self.frozen)
        features: Tensor = self.layers(x.flatten(1))
        return features


def fully_connected(sizes: Sequence[int]) -> nn.Sequential:
    """Return linear layers with a ReLU after each."""
    layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers)


def flat_size(shape: ImageShape) -> int:
    """Return the number of values in an array of this shape."""
    size = 1
    for side in shape:
        size *= side
    return size
