"""Encoders, which turn one modality's observation into one token."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from everloop.agents.networks import precision
from everloop.agents.normalise import RunningNorm


class VectorEncoder(nn.Module):
    """Encoder of a vector: a perceptron with one hidden layer.

    Args:
        size: Size of the vector, D.
        token_size: Size of the token.
        normalize: Whether to normalise the vector first, by `RunningNorm`.
    """

    def __init__(self, size: int, token_size: int, normalize: bool = False) -> None:
        super().__init__()
        self.norm = RunningNorm(size) if normalize else None
        self.layers = nn.Sequential(
            nn.Linear(size, token_size), nn.Tanh(), nn.Linear(token_size, token_size)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens (R, 1, token_size) of x, (R, ...) of any dtype, flattened to (R, D)."""
        x = x.flatten(1).to(precision(self))
        token: Tensor = self.layers(x if self.norm is None else self.norm(x))
        return rearrange(token, "r d -> r 1 d")


class BackboneEncoder(nn.Module):
    """Encoder made of a backbone and a linear map to the token.

    Args:
        backbone: Turns rows (R, ...) into features (R, size); `backbone.size` is their number.
        token_size: Size of the token.
    """

    def __init__(self, backbone: nn.Module, token_size: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.project = nn.Linear(int(backbone.size), token_size)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens (R, 1, token_size) of x, (R, ...), as the backbone takes it."""
        return rearrange(torch.tanh(self.project(self.backbone(x))), "r d -> r 1 d")


class ImageEncoder(nn.Module):
    """Convolutional encoder of images.

    A first 3x3 convolution keeps the resolution; further ones halve it until both sides are at
    most 4. There are no batch statistics, which would carry information from one task or example
    to another.

    Args:
        shape: (H, W, C) of an image.
        token_size: Size of the token.
        channels: Channels of the first convolution; each later one has twice as many.

    Raises:
        ValueError: If the shape is another one.
    """

    def __init__(self, shape: tuple[int, ...], token_size: int, channels: int = 16) -> None:
        super().__init__()
        if len(shape) != 3:
            raise ValueError(f"the image shape is {shape}; it must be (height, width, channels)")
        height, width, depth = shape
        layers: list[nn.Module] = [nn.Conv2d(depth, channels, 3, padding=1), nn.ReLU()]
        while max(height, width) > 4:
            layers += [nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1), nn.ReLU()]
            height, width, channels = -(-height // 2), -(-width // 2), 2 * channels
        self.convolutions = nn.Sequential(*layers)
        self.project = nn.Linear(height * width * channels, token_size)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens (R, 1, token_size) of images x, uint8 (R, H, W, C)."""
        x = rearrange(x, "r h w c -> r c h w").to(precision(self)) / 255.0 - 0.5
        x = self.convolutions(x)
        x = self.project(rearrange(x, "r c h w -> r (c h w)"))
        return rearrange(torch.tanh(x), "r d -> r 1 d")
