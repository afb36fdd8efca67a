"""Image folders: one folder a class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from everloop.envs.data.optional import needed
from everloop.envs.data.pictures import Encoded

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


def class_folders(root: Path) -> dict[str, list[Path]]:
    """Class name -> its pictures, both sorted; folders without pictures and hidden files don't
    count.
    """
    folders = sorted(
        path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")
    )
    return {folder.name: pictures for folder in folders if (pictures := _pictures(folder))}


def _pictures(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    )


def read_folder(root: Path, test_split: str) -> tuple[Encoded, Encoded, Sequence[str]]:
    """`root/train/<class>/*.png` and `root/<test_split>/<class>/*.png`: train, test and the
    classes, by name.

    The test split "test" may also be called val or validation. Raises ValueError if one is missing
    or empty, or if the test split has a class of its own.
    """
    names = ("test", "val", "validation") if test_split == "test" else (test_split,)
    found = [name for name in names if (root / name).is_dir()]
    if not found:
        there = ", ".join(sorted(path.name for path in root.iterdir() if path.is_dir()))
        raise ValueError(f"{root} has no folder {' or '.join(names)}, there are: {there}")
    splits = [class_folders(root / name) for name in ("train", found[0])]
    for name, folders in zip(("train", found[0]), splits, strict=True):
        if not folders:
            raise ValueError(
                f"{root / name} has no pictures, allowed: <class>/<name> with "
                f"{', '.join(sorted(SUFFIXES))}"
            )
    classes = list(splits[0])
    if stray := sorted(set(splits[1]) - set(classes)):
        raise ValueError(
            f"class {stray[0]!r} is in {root / found[0]} only, allowed: those of {root / 'train'}"
        )
    train, test = (encoded(folders, classes) for folders in splits)
    return train, test, classes


def encoded(folders: dict[str, list[Path]], classes: Sequence[str]) -> Encoded:
    """The pictures of all classes, one class after the other."""
    files = [file for pictures in folders.values() for file in pictures]
    labels = np.repeat(
        [classes.index(name) for name in folders], [len(pictures) for pictures in folders.values()]
    )
    return Encoded(lambda: files, _open, lambda i: str(files[i]), labels.astype(np.int64))


def _open(file: Path) -> Any:
    with needed("PIL.Image", "data", "reading images").open(file) as picture:
        return needed("PIL.ImageOps", "data", "reading images").exif_transpose(picture)
