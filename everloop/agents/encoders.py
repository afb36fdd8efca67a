"""Encoders: one modality's observation becomes one token."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from everloop.agents.networks import precision


class VectorEncoder(nn.Module):
    """A flat float modality (R, D) -> tokens (R, 1, token_size), by one hidden layer."""

    def __init__(self, size: int, token_size: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(size, token_size), nn.Tanh(), nn.Linear(token_size, token_size)
        )

    def forward(self, x: Tensor) -> Tensor:
        """x (R, D), any number type -> (R, 1, token_size)."""
        token: Tensor = self.layers(x.to(precision(self)))
        return rearrange(token, "r d -> r 1 d")


class BackboneEncoder(nn.Module):
    """Any backbone, rows (R, ...) -> features (R, size), and a linear map to tokens (R, 1,
    token_size).
    """

    def __init__(self, backbone: nn.Module, token_size: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.project = nn.Linear(int(backbone.size), token_size)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """x (R, ...), as the backbone takes it -> (R, 1, token_size)."""
        return rearrange(torch.tanh(self.project(self.backbone(x))), "r d -> r 1 d")


class ImageEncoder(nn.Module):
    """A uint8 image (R, H, W, C), H and W from 8 up -> tokens (R, 1, token_size).

    Convolutions 3x3 halve the image until its sides are at most 4, the first one at full
    resolution.
    No batch statistics: normalisation never carries anything from one task, or one example, to
    another. Raises ValueError for smaller images.
    """

    def __init__(self, shape: tuple[int, ...], token_size: int, channels: int = 16) -> None:
        super().__init__()
        if len(shape) != 3 or min(shape[:2]) < 8:
            raise ValueError(
                f"image shape is {shape}, allowed: (height, width, channels) with sides from 8 up"
            )
        height, width, depth = shape
        layers: list[nn.Module] = [nn.Conv2d(depth, channels, 3, padding=1), nn.ReLU()]
        while max(height, width) > 4:
            layers += [nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1), nn.ReLU()]
            height, width, channels = -(-height // 2), -(-width // 2), 2 * channels
        self.convolutions = nn.Sequential(*layers)
        self.project = nn.Linear(height * width * channels, token_size)

    def forward(self, x: Tensor) -> Tensor:
        """x uint8 (R, H, W, C) -> (R, 1, token_size)."""
        x = rearrange(x, "r h w c -> r c h w").to(precision(self)) / 255.0 - 0.5
        x = self.convolutions(x)
        x = self.project(rearrange(x, "r c h w -> r (c h w)"))
        return rearrange(torch.tanh(x), "r d -> r 1 d")
