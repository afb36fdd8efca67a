"""Images a little different each time that they are learned from."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

PADDING = 4
"""Pixels by which a crop may be off."""


def crop_flip(images: Tensor) -> Tensor:
    """Each image (..., H, W, C) moved by up to `PADDING` pixels both ways and, one time in two,
    mirrored left to right.

    What comes in from outside is black. Every draw is uniform, by torch's global generator. The
    usual augmentation of CIFAR (He et al. 2016, section 4.2).
    """
    rows = images.flatten(0, -4)
    count, height, width = rows.shape[:3]
    padded = F.pad(rows, (0, 0, PADDING, PADDING, PADDING, PADDING))
    across, down = torch.arange(width, device=rows.device), torch.arange(height, device=rows.device)
    top, left = torch.randint(2 * PADDING + 1, (2, count, 1), device=rows.device)
    columns = left + torch.where(
        torch.rand(count, 1, device=rows.device) < 0.5, across, across.flip(0)
    )
    which = torch.arange(count, device=rows.device)[:, None, None]
    return padded[which, (top + down)[:, :, None], columns[:, None]].view_as(images)


AUGMENTATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda images: images,
    "crop_flip": crop_flip,
}
