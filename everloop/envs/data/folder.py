"""Folders of pictures, one folder per class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from everloop.envs.data.optional import needed
from everloop.envs.data.pictures import Encoded

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


def class_folders(root: Path) -> dict[str, list[Path]]:
    """Return class name -> its pictures, both sorted.

    Folders without pictures and hidden files and folders are skipped.
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
    """Read `root/train/<class>/*` and `root/<test_split>/<class>/*`.

    Args:
        root: The folder.
        test_split: Name of the test split's folder. For "test" it may also be val or validation.

    Returns:
        Train, test and the names of the classes.

    Raises:
        ValueError: If a split is missing or empty, or if the test split has a class that training
            lacks.
    """
    names = ("test", "val", "validation") if test_split == "test" else (test_split,)
    found = [name for name in names if (root / name).is_dir()]
    if not found:
        there = ", ".join(sorted(path.name for path in root.iterdir() if path.is_dir()))
        raise ValueError(f"{root} has no folder {' or '.join(names)}; its folders are {there}")
    splits = [class_folders(root / name) for name in ("train", found[0])]
    for name, folders in zip(("train", found[0]), splits, strict=True):
        if not folders:
            raise ValueError(
                f"{root / name} has no pictures; it must hold <class>/<picture> with one of "
                f"{', '.join(sorted(SUFFIXES))}"
            )
    classes = list(splits[0])
    if stray := sorted(set(splits[1]) - set(classes)):
        raise ValueError(
            f"class {stray[0]!r} is in {root / found[0]} only; {root / 'train'} must have it too"
        )
    train, test = (encoded(folders, classes) for folders in splits)
    return train, test, classes


def encoded(folders: dict[str, list[Path]], classes: Sequence[str]) -> Encoded:
    """Return the pictures of all folders, one class after the other.

    Args:
        folders: Class name -> its pictures.
        classes: Names of all classes, whose positions are the labels.
    """
    files = [file for pictures in folders.values() for file in pictures]
    labels = np.repeat(
        [classes.index(name) for name in folders], [len(pictures) for pictures in folders.values()]
    )
    return Encoded(lambda: files, _open, lambda i: str(files[i]), labels.astype(np.int64))


def _open(file: Path) -> Any:
    with needed("PIL.Image", "data", "reading images").open(file) as picture:
        return needed("PIL.ImageOps", "data", "reading images").exif_transpose(picture)
