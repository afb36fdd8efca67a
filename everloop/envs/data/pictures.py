"""Encoded pictures become arrays, once, in a cache that is mapped into memory."""

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

GREY = {"1", "L", "LA"}  # modes of PIL, the Python Imaging Library: one channel
COLOUR = {"RGB", "RGBA", "RGBX", "P", "PA", "CMYK", "YCbCr", "LAB", "HSV"}  # three
CHUNK = 256  # encoded pictures in memory at a time
SPLITS = ("train", "test")
FORMAT = "2"  # of what the cache keeps: with another one, nothing kept before is found

Size = tuple[int, int]  # height, width


@dataclass(frozen=True)
class Encoded:
    """One split before its pictures are decoded.

    pictures: starts a pass over them, in order, each as `decode` takes it.
    decode: makes one a PIL image, whatever its mode; any error says that it can't be read.
    where: how a message names the picture at a position.
    labels: int64 (N,), indices into the classes. columns: name -> N strings.
    """

    pictures: Callable[[], Iterable[Any]]
    decode: Callable[[Any], Any]
    where: Callable[[int], str]
    labels: npt.NDArray[np.int64]
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def picture(self, position: int, source: Any) -> Any:
        """The PIL image.

        Raises ValueError, naming it, if it can't be read or has more than 8 bits a channel.
        """
        try:
            picture = self.decode(source)
        except (
            Exception
        ) as error:  # PIL's plugins raise whatever a broken file makes them stumble over
            raise ValueError(
                f"{self.where(position)} can't be read as an image ({type(error).__name__})"
            ) from error
        if picture.mode not in GREY | COLOUR:
            raise ValueError(
                f"{self.where(position)} has the mode {picture.mode}, allowed: 8 bits a channel"
            )
        return picture


class Coloured(Exception):
    """A picture has three channels where all were thought to have one."""


def checked_size(size: Sequence[int] | None) -> Size | None:
    """(height, width). Raises ValueError unless they are two whole numbers from 1 up, or None."""
    if size is None:
        return None
    if len(size) != 2 or not all(isinstance(side, int | np.integer) and side >= 1 for side in size):
        raise ValueError(f"size is {size}, allowed: (height, width), each 1 or more")
    return int(size[0]), int(size[1])


def decoded(
    key: str, read: Callable[[Path], tuple[Encoded, Encoded, Sequence[str]]], size: Size | None
) -> tuple[Examples, Examples]:
    """Train and test examples from the cache, which `read(scratch folder)` -> (train, test,
    classes) fills if need be.

    Pictures have one channel if all are grey, else three; transparency is dropped. With `size` each
    is scaled until it just covers that, and what juts out on two sides is cut off; without it all
    must have the same size.
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
                    np.save(
                        folder / file_name(f"{split}/columns/{name}"), np.asarray(column, np.str_)
                    )
            np.save(folder / file_name("classes"), np.asarray(classes, np.str_))

    arrays = cached_folder(key, write)
    train, test = (opened(arrays, split) for split in SPLITS)
    return train, test


def _write(folder: Path, splits: Mapping[str, Encoded], size: Size | None, mode: str) -> None:
    """Decode all pictures, in order, straight into the files.

    Raises Coloured if one has more channels than `mode`.
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
                f"{encoded.where(position)} is {picture.size[::-1]} high and wide, "
                f"allowed: {(height, width)} as the first one, or any if a size is given"
            )
        images[position] = pixels(picture, mode, (height, width))

    numbered = enumerate(encoded.pictures())
    with ThreadPoolExecutor() as threads:  # PIL decodes without holding the interpreter
        while chunk := list(islice(numbered, CHUNK)):
            for _ in threads.map(place, *zip(*chunk, strict=True)):
                pass


def pixels(picture: Any, mode: str, size: Size) -> Array:
    """A PIL image in `mode` ("L" or "RGB"), scaled and cropped to `size`: uint8 (H, W, C)."""
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")  # on the way to RGB Pillow would warn
    if picture.mode != mode:
        picture = picture.convert(mode)
    if picture.size != size[::-1]:
        picture = needed("PIL.ImageOps", "data", "reading images").fit(picture, size[::-1])
    return np.asarray(picture).reshape(*size, len(mode))
