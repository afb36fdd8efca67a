"""Where the channels of a picture are."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from everloop.envs.data.examples import Array

Channels = Literal["first", "last"]
MOST = 4  # channels of a common picture: grey, colour, either with transparency


def channels_last(images: Array, channels: Channels | None, what: str) -> Array:
    """Return pictures (..., H, W, C), a view of pictures (..., H, W, C) or (..., C, H, W).

    Args:
        images: The pictures, with three axes or more.
        channels: Where C is. None is for pictures that show it: exactly one of the two axes where
            C may be has 4 entries or fewer.
        what: What the pictures are called in an error.

    Raises:
        ValueError: If `channels` is None and the shape leaves it open, or another word.
    """
    check_channels(channels)
    if channels is None:
        few = [images.shape[-3] <= MOST, images.shape[-1] <= MOST]
        if few[0] == few[1]:
            raise ValueError(
                f"{what} of shape {images.shape} may be (height, width, channels) or (channels, "
                'height, width); write channels="last" or channels="first"'
            )
        channels = "first" if few[0] else "last"
    return np.moveaxis(images, -3, -1) if channels == "first" else images


def check_channels(channels: str | None) -> None:
    """Raise ValueError unless `channels` is a `Channels` or None."""
    if channels is not None and channels not in get_args(Channels):
        raise ValueError(f'channels is {channels!r}; write "first" or "last"')
