"""Examples from map-style data sets of torch. torch itself is not imported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from everloop.envs.data.arrays import code_labels
from everloop.envs.data.examples import Array, Examples
from everloop.envs.data.layout import Channels, channels_last, check_channels
from everloop.envs.data.pictures import COLOUR, GREY, pixels


class MapDataset(Protocol):
    """A map-style `torch.utils.data.Dataset` whose items are (picture, label)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def from_torch(
    train: MapDataset,
    test: MapDataset,
    classes: Sequence[str] | None = None,
    channels: Channels | None = None,
) -> tuple[Examples, Examples]:
    """Read two data sets, whose items are (picture, label), into memory.

    A picture is a PIL image; or an array or a tensor (H, W), (H, W, C) or (C, H, W). It is uint8,
    or floats from 0 to 1, which are rounded to 256 grey levels.

    Args:
        train: The train split.
        test: The test split.
        classes: Names of the classes, if labels are indices into them. None means that labels are
            integers or strings of any kind, whose sorted values in training are the classes.
        channels: Where C is, "last" or "first". None is for pictures that show it: exactly one of
            the two axes where C may be has 4 entries or fewer.

    Returns:
        (train, test) examples, images uint8 (N, H, W, C).

    Raises:
        ValueError: If an item is of another kind or the pictures differ in shape. The message
            names the item.
    """
    check_channels(channels)
    images, labels = _read(train, "train", None, channels)
    test_images, test_labels = _read(test, "test", images.shape[1:], channels)
    if classes is None:
        labels, test_labels, classes = code_labels(labels, test_labels)
    elif labels.dtype.kind != "i" or test_labels.dtype.kind != "i":
        raise ValueError(
            f"labels have dtype {labels.dtype} and {test_labels.dtype}; with classes they must be "
            "integers"
        )
    names = tuple(classes)
    return Examples(images, labels, names), Examples(test_images, test_labels, names)


def _read(
    data: MapDataset, split: str, shape: tuple[int, ...] | None, channels: Channels | None
) -> tuple[Array, Array]:
    """Return pictures (N, *shape) and labels (N,); the first picture gives a missing shape."""
    if not len(data):
        raise ValueError(f"{split} holds 0 examples; it needs at least one")
    images = None
    labels = []
    for i in range(len(data)):  # iterating over a torch data set need not end
        picture, label = data[i]
        image = _picture(picture, f"picture {i} of {split}", channels)
        shape = shape or image.shape
        if image.shape != shape:
            raise ValueError(
                f"picture {i} of {split} has shape {image.shape}; it must be {shape}, as the first "
                "one of train"
            )
        if (value := np.asarray(label)).ndim:
            raise ValueError(
                f"label {i} of {split} has shape {value.shape}; it must be one integer or string"
            )
        images = np.empty((len(data), *shape), np.uint8) if images is None else images
        images[i] = image
        labels.append(value.item())
    assert images is not None
    return images, np.asarray(labels)


def _picture(picture: Any, where: str, channels: Channels | None) -> Array:
    """Return a picture as uint8 (H, W, C); `where` names it in errors."""
    if hasattr(picture, "convert"):  # a PIL image
        if picture.mode not in GREY | COLOUR:
            raise ValueError(f"{where} has the mode {picture.mode}; convert it to L or RGB")
        return pixels(picture, "L" if picture.mode in GREY else "RGB", picture.size[::-1])
    array = picture.numpy() if hasattr(picture, "numpy") else np.asarray(picture)
    if np.issubdtype(array.dtype, np.floating) and array.size:
        if not (array.min() >= 0 and array.max() <= 1):
            raise ValueError(
                f"{where} has values from {array.min():g} to {array.max():g}; floats must be from "
                "0 to 1"
            )
        array = np.rint(array * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        raise ValueError(
            f"{where} has dtype {array.dtype}; it must be uint8, or floats from 0 to 1"
        )
    if array.ndim == 2:
        return array[..., None]
    if array.ndim != 3:
        raise ValueError(
            f"{where} has shape {array.shape}; it must be (H, W), (H, W, C) or (C, H, W)"
        )
    return channels_last(array, channels, where)
