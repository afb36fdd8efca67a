"""Examples from data sets in the manner of torch, by what they can do: torch itself isn't
imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from everloop.envs.data.arrays import code_labels
from everloop.envs.data.examples import Array, Examples
from everloop.envs.data.pictures import COLOUR, GREY, pixels

CHANNELS = (1, 3, 4)


class MapDataset(Protocol):
    """What a `torch.utils.data.Dataset` is to who reads it: items are (picture, label)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def from_torch(
    train: MapDataset, test: MapDataset, classes: Sequence[str] | None = None
) -> tuple[Examples, Examples]:
    """Train and test examples of two data sets whose items are (picture, label), each read once
    into memory.

    A picture is a PIL image; or an array or a tensor (H, W), (H, W, C) or (C, H, W), C in 1, 3, 4:
    uint8, or floats from 0 to 1, which become the nearest of 256 levels. Where both ends could be
    C, a tensor has it first, an array last. A label is an integer or a string; with `classes`,
    their names, it is the position of one. Raises ValueError, naming the item, for anything else
    and for pictures that differ in shape.
    """
    images, labels = _read(train, "train", None)
    test_images, test_labels = _read(test, "test", images.shape[1:])
    if classes is None:
        labels, test_labels, classes = code_labels(labels, test_labels)
    elif labels.dtype.kind != "i" or test_labels.dtype.kind != "i":
        raise ValueError(
            f"labels have dtype {labels.dtype} and {test_labels.dtype}, allowed: integers where "
            "classes are given"
        )
    return Examples(images, labels, tuple(classes)), Examples(
        test_images, test_labels, tuple(classes)
    )


def _read(data: MapDataset, split: str, shape: tuple[int, ...] | None) -> tuple[Array, Array]:
    """Pictures (N, H, W, C) and labels (N,), all of `shape` or of that of the first."""
    if not len(data):
        raise ValueError(f"{split} holds 0 examples, allowed: 1 or more")
    images, labels = None, []
    for i in range(len(data)):  # an old-style sequence, which torch's need not end
        picture, label = data[i]
        image = _picture(picture, f"picture {i} of {split}")
        shape = shape or image.shape
        if image.shape != shape:
            raise ValueError(
                f"picture {i} of {split} has shape {image.shape}, allowed: {shape} as the first "
                "one of train"
            )
        if (value := np.asarray(label)).ndim:
            raise ValueError(
                f"label {i} of {split} has shape {value.shape}, allowed: one integer or string"
            )
        images = np.empty((len(data), *shape), np.uint8) if images is None else images
        images[i] = image
        labels.append(value.item())
    assert images is not None
    return images, np.asarray(labels)


def _picture(picture: Any, where: str) -> Array:
    """uint8 (H, W, C)."""
    if hasattr(picture, "convert"):  # a PIL image
        if picture.mode not in GREY | COLOUR:
            raise ValueError(f"{where} has the mode {picture.mode}, allowed: 8 bits a channel")
        return pixels(picture, "L" if picture.mode in GREY else "RGB", picture.size[::-1])
    tensor = hasattr(picture, "numpy")
    array = picture.numpy() if tensor else np.asarray(picture)
    if np.issubdtype(array.dtype, np.floating) and array.size:
        if not (array.min() >= 0 and array.max() <= 1):
            raise ValueError(
                f"{where} has values from {array.min():g} to {array.max():g}, allowed: floats from "
                "0 to 1, or uint8"
            )
        array = np.rint(array * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        raise ValueError(f"{where} has dtype {array.dtype}, allowed: uint8, or floats from 0 to 1")
    if array.ndim == 2:
        return array[..., None]
    ends = [
        axis
        for axis in ((0, 2) if tensor else (2, 0))
        if array.ndim == 3 and array.shape[axis] in CHANNELS
    ]
    if not ends:
        raise ValueError(
            f"{where} has shape {array.shape}, allowed: (H, W), (H, W, C) or (C, H, W), C in "
            f"{CHANNELS}"
        )
    return np.moveaxis(array, ends[0], 2)
