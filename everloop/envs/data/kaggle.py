"""ImageNet at 256 x 256, from Kaggle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from everloop.envs.data.cache import fingerprint
from everloop.envs.data.examples import Examples
from everloop.envs.data.folder import class_folders, encoded
from everloop.envs.data.optional import first_line, needed
from everloop.envs.data.pictures import FORMAT, Encoded, Size, checked_size, decoded

HANDLE = "dimensi0n/imagenet-256"


def imagenet256(
    folder: str | Path | None = None, size: Size = (256, 256)
) -> tuple[Examples, Examples]:
    """Train and test examples of ImageNet-256: pictures of `size` (height, width), up to 256 each,
    and 3 channels.

    folder: where it lies, one folder a class; None to download it (extra `kaggle`, and an account
        there). There is
    no split: of every class each tenth picture, by sorted name, is a test example.
    Source: Kaggle, dimensi0n/imagenet-256, made from ILSVRC 2012 (Russakovsky et al. 2015). Raises
    ValueError where it can't be downloaded, a picture can't be read, or no class has ten of them.
    """
    size = checked_size(size) or (256, 256)
    if max(size) > 256:
        raise ValueError(f"size is {size}, allowed: up to (256, 256)")
    root = Path(_download() if folder is None else folder).expanduser()
    key = f"imagenet256-{fingerprint(repr((FORMAT, size)), root)}"
    return decoded(key, lambda _: _read(root), size)


def _read(root: Path) -> tuple[Encoded, Encoded, Sequence[str]]:
    """Train, test and the classes."""
    folders = class_folders(root)
    test = {name: pictures[9::10] for name, pictures in folders.items()}
    train = {
        name: [file for i, file in enumerate(pictures) if i % 10 != 9]
        for name, pictures in folders.items()
    }
    if not any(test.values()):
        raise ValueError(
            f"{root} has no class with 10 pictures, allowed: <class>/<picture>, so that each tenth "
            "is for tests"
        )
    classes = list(folders)
    return encoded(train, classes), encoded(test, classes), classes


def _download() -> str:
    kagglehub = needed("kagglehub", "kaggle", "downloading ImageNet-256")
    try:
        return str(kagglehub.dataset_download(HANDLE))
    except Exception as error:  # of the network, of the account, or of Kaggle
        raise ValueError(
            f"{HANDLE} can't be downloaded from Kaggle ({first_line(error)}), allowed: with a "
            "network and an account "
            "(kagglehub.login()), or give the folder it lies in"
        ) from error
