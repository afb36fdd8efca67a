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
    """Load ImageNet-256. The first call decodes it; later ones map it from the cache.

    The data set has no test split: of each class every tenth picture, by sorted name, is a test
    example. Source: Kaggle, dimensi0n/imagenet-256, made from ILSVRC 2012 (Russakovsky et al.
    2015).

    Args:
        folder: The data set, one folder per class. None downloads it, which needs the extra
            `kaggle` and an account there.
        size: (height, width) in pixels, up to 256 each, to which every picture is scaled.

    Returns:
        (train, test) examples, images uint8 (N, height, width, 3).

    Raises:
        ValueError: If the data set cannot be downloaded, a picture cannot be read, or no class has
            ten pictures.
        ImportError: If an extra is needed and not installed.
    """
    size = checked_size(size) or (256, 256)
    if max(size) > 256:
        raise ValueError(f"size is {size}; it must be at most (256, 256)")
    root = Path(_download() if folder is None else folder).expanduser()
    key = f"imagenet256-{fingerprint(repr((FORMAT, size)), root)}"
    return decoded(key, lambda _: _read(root), size)


def _read(root: Path) -> tuple[Encoded, Encoded, Sequence[str]]:
    """Return train, test and the names of the classes."""
    folders = class_folders(root)
    test = {name: pictures[9::10] for name, pictures in folders.items()}
    train = {
        name: [file for i, file in enumerate(pictures) if i % 10 != 9]
        for name, pictures in folders.items()
    }
    if not any(test.values()):
        raise ValueError(
            f"{root} has no class with 10 pictures; it must hold <class>/<picture>, of which every "
            "tenth is a test example"
        )
    classes = list(folders)
    return encoded(train, classes), encoded(test, classes), classes


def _download() -> str:
    kagglehub = needed("kagglehub", "kaggle", "downloading ImageNet-256")
    try:
        return str(kagglehub.dataset_download(HANDLE))
    except Exception as error:  # from the network, the account or Kaggle
        raise ValueError(
            f"{HANDLE} can't be downloaded from Kaggle ({first_line(error)}); log in with "
            "kagglehub.login(), or give the folder of the data set"
        ) from error
