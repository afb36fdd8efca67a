"""Views of images: fixed maps of the pixels, one per task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

Images = npt.NDArray[Any]
View = Callable[[Images, int], Images]


def permute_pixels(orders: Sequence[npt.NDArray[np.int64]]) -> View:
    """Return a view whose pixel i is the original pixel `orders[task][i]`.

    Args:
        orders: For each task a permutation of the pixels, (H * W,).

    Returns:
        `view(images, task)`, from and to images (B, H, W, C) of any dtype.
    """

    def view(images: Images, task: int) -> Images:
        flat = images.reshape(len(images), -1, images.shape[-1])
        return flat[:, orders[task]].reshape(images.shape)

    return view


def rotate_pixels(height: int, width: int, angles: Sequence[float]) -> View:
    """Return a view that rotates images about their centre, with bilinear interpolation.

    Pixels from outside the image are black.

    Args:
        height: Height of the images in pixels.
        width: Width of the images in pixels.
        angles: Angle of each task, in degrees counter-clockwise.

    Returns:
        `view(images, task)`, from and to uint8 images (B, height, width, C).
    """

    @lru_cache(maxsize=2)
    def corners(task: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        return _bilinear(height, width, angles[task])

    def view(images: Images, task: int) -> Images:
        if angles[task] % 360 == 0:
            return images
        index, weight = corners(task)
        flat = images.reshape(len(images), -1, images.shape[-1])
        turned = sum(flat[:, i] * w[:, None] for i, w in zip(index, weight, strict=True))
        whole: Images = np.rint(turned).astype(np.uint8).reshape(images.shape)
        return whole

    return view


def _bilinear(
    height: int, width: int, angle: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return the four source pixels of every pixel and their weights, (4, H * W) each.

    The weight of a pixel outside the image is 0.
    """
    centre = np.array([[(height - 1) / 2], [(width - 1) / 2]])
    y, x = np.mgrid[:height, :width].reshape(2, -1) - centre
    cos, sin = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    source_x = cos * x - sin * y + (width - 1) / 2
    source_y = sin * x + cos * y + (height - 1) / 2
    # rotations by multiples of 90 degrees must hit pixels exactly, without rounding errors
    source_x, source_y = np.round(source_x, 9), np.round(source_y, 9)
    left, top = np.floor(source_x), np.floor(source_y)
    index = []
    weight = []
    for dy in (0, 1):
        for dx in (0, 1):
            column, row = left + dx, top + dy
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            share = (1 - np.abs(source_x - column)) * (1 - np.abs(source_y - row))
            index.append(np.where(inside, row * width + column, 0))
            weight.append(np.where(inside, share, 0.0))
    return np.array(index, dtype=np.int64), np.array(weight, dtype=np.float32)
