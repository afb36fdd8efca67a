"""Decoding of pictures into arrays, done once and stored in the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from everloop.envs.data.cache import cached_folder, file_name
from everloop.envs.data.examples import Array, Examples, opened
from everloop.envs.data.optional import needed

# modes of PIL, the Python Imaging Library, with 8 bits or less per channel
GREY = {"1", "L", "LA"}
COLOUR = {"RGB", "RGBA", "RGBX", "P", "PA", "CMYK", "YCbCr", "LAB", "HSV"}
CHUNK = 256  # encoded pictures in memory at a time
SPLITS = ("train", "test")
FORMAT = "2"  # version of the stored arrays; a change makes the cache ignore older ones

Size = tuple[int, int]
"""(height, width) in pixels."""


@dataclass(frozen=True)
class Encoded:
    """The training or the test set, with N pictures that are not decoded yet.

    Args:
        pictures: Function that returns an iterator over the pictures, in order.
        decode: Function from one of them to a PIL image of any mode. Any error means that the
            picture cannot be read.
        where: Function from a position to the picture's name, for error messages.
        labels: Indices into the classes, int64 (N,).
        columns: Column name -> N strings.
    """

    pictures: Callable[[], Iterable[Any]]
    decode: Callable[[Any], Any]
    where: Callable[[int], str]
    labels: npt.NDArray[np.int64]
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def picture(self, position: int, source: Any) -> Any:
        """Decode `source`, the picture at `position`, into a PIL image.

        Raises:
            ValueError: If it cannot be read, or if its mode is not in `GREY` or `COLOUR`.
        """
        try:
            picture = self.decode(source)
        except Exception as error:  # PIL's plugins raise many types for a broken file
            raise ValueError(
                f"{self.where(position)} can't be read as an image ({type(error).__name__})"
            ) from error
        if picture.mode not in GREY | COLOUR:
            raise ValueError(
                f"{self.where(position)} has the mode {picture.mode}; convert it to L or RGB"
            )
        return picture


class Coloured(Exception):
    """A picture has a colour mode, although all were assumed to be grey."""


def checked_size(size: Sequence[int] | None) -> Size | None:
    """Return (height, width) or None.

    Raises:
        ValueError: Unless `size` is None or two integers of 1 or more.
    """
    if size is None:
        return None
    if len(size) != 2 or not all(isinstance(side, int | np.integer) and side >= 1 for side in size):
        raise ValueError(f"size is {size}; it must be (height, width), each 1 or more")
    return int(size[0]), int(size[1])


def decoded(
    key: str, read: Callable[[Path], tuple[Encoded, Encoded, Sequence[str]]], size: Size | None
) -> tuple[Examples, Examples]:
    """Return train and test examples from the cache, which is filled if necessary.

    The images have one channel if the mode of every picture is grey (1, L or LA), else three.
    Transparency is dropped. With a `size` each picture is scaled until it just covers that size,
    and cropped about its centre.

    Args:
        key: Key in the cache.
        read: `read(scratch folder)` returns train, test and the names of the classes.
        size: (height, width) of the images; None if all pictures have the same size.

    Raises:
        ValueError: If a picture cannot be read, or if the sizes differ and `size` is None.
    """

    def write(folder: Path) -> None:
        needed("PIL.Image", "data", "reading images")
        with TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as scratch:
            train, test, classes = read(Path(scratch))
            splits = dict(zip(SPLITS, (train, test), strict=True))
            try:
                _write(folder, splits, size, "L")
            except Coloured:
                _write(folder, splits, size, "RGB")
            for split, encoded in splits.items():
                np.save(folder / file_name(f"{split}/labels"), encoded.labels)
                for name, column in encoded.columns.items():
                    file = folder / file_name(f"{split}/columns/{name}")
                    np.save(file, np.asarray(column, np.str_))
            np.save(folder / file_name("classes"), np.asarray(classes, np.str_))

    arrays = cached_folder(key, write)
    train, test = (opened(arrays, split) for split in SPLITS)
    return train, test


def _write(folder: Path, splits: Mapping[str, Encoded], size: Size | None, mode: str) -> None:
    """Decode all pictures, in order, directly into the files.

    Raises:
        Coloured: If `mode` is "L" and a picture has a colour mode.
    """
    train = splits["train"]
    shape = size or train.picture(0, next(iter(train.pictures()))).size[::-1]
    for split, encoded in splits.items():
        images = np.lib.format.open_memmap(
            folder / file_name(f"{split}/inputs"),
            "w+",
            np.uint8,
            (len(encoded.labels), *shape, len(mode)),
        )
        _fill(images, encoded, size is not None, mode)


def _fill(images: Array, encoded: Encoded, resize: bool, mode: str) -> None:
    height, width = images.shape[1:3]

    def place(position: int, source: Any) -> None:
        picture = encoded.picture(position, source)
        if mode == "L" and picture.mode in COLOUR:
            raise Coloured
        if picture.size != (width, height) and not resize:
            raise ValueError(
                f"{encoded.where(position)} has size {picture.size[::-1]} but the first picture "
                f"has size {(height, width)}; set `size` to scale all pictures to it"
            )
        images[position] = pixels(picture, mode, (height, width))

    numbered = enumerate(encoded.pictures())
    with ThreadPoolExecutor() as threads:  # PIL releases the interpreter lock
        while chunk := list(islice(numbered, CHUNK)):
            for _ in threads.map(place, *zip(*chunk, strict=True)):
                pass


def pixels(picture: Any, mode: str, size: Size) -> Array:
    """Return a PIL image as an array, uint8 (H, W, C).

    Args:
        picture: The image, of any mode with 8 bits per channel.
        mode: "L" for one channel or "RGB" for three.
        size: (H, W), to which the image is scaled and cropped.
    """
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")  # Pillow warns when it converts such an image directly
    if picture.mode != mode:
        picture = picture.convert(mode)
    if picture.size != size[::-1]:
        picture = needed("PIL.ImageOps", "data", "reading images").fit(picture, size[::-1])
    return np.asarray(picture).reshape(*size, len(mode))
