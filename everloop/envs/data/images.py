"""Image data sets: of the Hugging Face Hub, of a folder in its layout, or a folder of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from everloop.envs.data.examples import Examples
from everloop.envs.data.folder import class_folders, read_folder
from everloop.envs.data.hub import located, read_pictures
from everloop.envs.data.pictures import FORMAT, Size, checked_size, decoded


def load_images(
    source: str | Path,
    *,
    image: str = "image",
    label: str = "label",
    columns: Sequence[str] = (),
    size: Size | None = None,
    test_split: str = "test",
) -> tuple[Examples, Examples]:
    """Train and test examples. They are decoded once; from then on they are mapped into memory from
    the cache.

    source: a data set's id on the Hugging Face Hub; or a folder in its layout (parquet files, for
        one); or a folder of pictures, `train/<class>/*.png` (or jpg, jpeg, webp, bmp) and
        `test/<class>/*` (or val, validation).
    image, label: names of the columns with the pictures and with the labels: class labels, integers
        or strings.
    columns: more columns to keep, of class labels, integers or strings; all become strings.
    size: (height, width) to scale and crop every picture to; None where all have the same size.
    test_split: name of the split that is used for tests, beside "train".

    Grey pictures have one channel; if any has colour, all have three. Needs the extra `data`, but
    nothing for a folder which is in the cache. Raises ValueError for what is missing or can't be
    read, and keeps nothing of it.
    """
    size, folder = checked_size(size), Path(source).expanduser()
    key, splits = located(
        "images", source, repr((FORMAT, image, label, tuple(columns), size, test_split))
    )
    if (folder / "train").is_dir() and class_folders(folder / "train"):
        if (image, label, *columns) != ("image", "label"):
            raise ValueError(
                f"columns are {(image, label, *columns)}, allowed: ('image', 'label') of the "
                f"folder of pictures {source}"
            )
        return decoded(key, lambda _: read_folder(folder, test_split), size)
    return decoded(
        key,
        lambda scratch: read_pictures(splits(scratch), source, image, label, columns, test_split),
        size,
    )
