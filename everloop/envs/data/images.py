"""Image data sets from the Hugging Face Hub, a folder in its layout, or a folder of pictures."""

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
    """Load an image data set. The first call decodes it; later ones map it from the cache.

    The images have one channel if all pictures are grey, else three. Needs the extra `data`,
    unless the source is a folder that is already in the cache. If a call fails, the cache keeps
    nothing of it.

    Args:
        source: A data set's id on the Hugging Face Hub; or a folder in its layout, such as parquet
            files; or a folder of pictures, `train/<class>/*.png` (or jpg, jpeg, webp, bmp) and
            `test/<class>/*` (or val, validation).
        image: Name of the column with the pictures.
        label: Name of the column with the labels: class labels, integers or strings.
        columns: More columns to keep, of class labels, integers or strings. All become strings.
        size: (height, width) in pixels, to which every picture is scaled and cropped. None if all
            have the same size.
        test_split: Name of the test split. The train split is "train".

    Returns:
        (train, test) examples, images uint8 (N, H, W, C).

    Raises:
        ValueError: If something is missing or cannot be read.
        ImportError: If the extra `data` is needed and not installed.
    """
    size = checked_size(size)
    folder = Path(source).expanduser()
    key, splits = located(
        "images", source, repr((FORMAT, image, label, tuple(columns), size, test_split))
    )
    if (folder / "train").is_dir() and class_folders(folder / "train"):
        if (image, label, *columns) != ("image", "label"):
            raise ValueError(
                f"columns are {(image, label, *columns)}; the folder of pictures {source} has "
                "('image', 'label') only"
            )
        return decoded(key, lambda _: read_folder(folder, test_split), size)
    return decoded(
        key,
        lambda scratch: read_pictures(splits(scratch), source, image, label, columns, test_split),
        size,
    )
