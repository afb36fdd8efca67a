"""Augmentation of training images."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

PADDING = 4
"""The largest shift of a crop, in pixels."""


def crop_flip(images: Tensor) -> Tensor:
    """Shift each image at random by up to `PADDING` pixels, and mirror half of them left to right.

    Pixels from outside the image are black. All draws are uniform and use torch's global generator.
    This is the usual augmentation of CIFAR (He et al. 2016, section 4.2).

    Args:
        images: Images (..., H, W, C) of any dtype, with at least one leading dimension.

    Returns:
        New images of the same shape and dtype.
    """
    flat, device = images.flatten(0, -4), images.device
    count, height, width = flat.shape[:3]
    padded = F.pad(flat, (0, 0, PADDING, PADDING, PADDING, PADDING))
    across, down = torch.arange(width, device=device), torch.arange(height, device=device)
    top, left = torch.randint(2 * PADDING + 1, (2, count, 1), device=device)
    mirrored = torch.rand(count, 1, device=device) < 0.5
    columns = left + torch.where(mirrored, across, across.flip(0))
    which = torch.arange(count, device=device)[:, None, None]
    return padded[which, (top + down)[:, :, None], columns[:, None]].view_as(images)


AUGMENTATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda images: images,
    "crop_flip": crop_flip,
}
"""Augmentations by the name of the option `augment`."""
