"""Data sets of the Hugging Face Hub and folders in its layout."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import numpy as np
import numpy.typing as npt

from everloop.envs.data.arrays import Labels, code_labels
from everloop.envs.data.cache import fingerprint
from everloop.envs.data.optional import first_line, needed
from everloop.envs.data.pictures import CHUNK, Encoded

# dtypes of labels and other columns; class labels are int64 with names
COLUMN = r"u?int\d+|(large_)?string"
MARK = "\ufeff"  # the byte order mark


class Unreachable(ValueError):
    """A data set of the Hub is not stored on this machine, and the Hub cannot be reached."""


def is_hub_id(source: str | Path) -> bool:
    """Return True if `source` has the form of a Hub id, `owner/name`."""
    return isinstance(source, str) and re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source) is not None


def load_splits(source: str, scratch: Path | None = None) -> Any:
    """Load a data set's splits by name, each a `datasets.Dataset`.

    Args:
        source: A Hub id, or a folder if `scratch` is given.
        scratch: Folder for what the library writes while it reads a local folder.

    Raises:
        Unreachable: If the data set is not stored here and the Hub cannot be reached.
        ValueError: If it cannot be found or read. The message is one line.
    """
    datasets = needed("datasets", "data", "reading a data set")
    answers = scratch is not None or hub_answers()
    try:
        with contextlib.nullcontext() if answers else offline():
            cache = None if scratch is None else str(scratch)
            config = datasets.load_dataset_builder(source, cache_dir=cache).config
            # else "NA", "null" and empty cells of a CSV file would be missing values
            options = {"keep_default_na": False} if hasattr(config, "keep_default_na") else {}
            return datasets.load_dataset(source, cache_dir=cache, **options)
    except Exception as error:  # from the network, the Hub, the file system or any reader
        if not answers or isinstance(error, ConnectionError):
            raise Unreachable(
                f"data set {source} can't be reached, and is not stored here"
            ) from error
        wanted = "an existing id of the Hub" if scratch is None else "a folder in the Hub's layout"
        raise ValueError(
            f"data set {source} can't be loaded ({first_line(error)}); give {wanted}"
        ) from error


def hub_answers() -> bool:
    """Return True if the Hub can be reached, or if only a request through a proxy could tell."""
    hub = urlsplit(needed("huggingface_hub", "data", "reading a data set").constants.ENDPOINT)
    if getproxies():
        return True
    try:
        socket.create_connection((hub.hostname or "", hub.port or 443), timeout=5).close()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Make the Hub's libraries use stored files only, without half a minute of retries."""
    places = [
        (needed(name, "data", "reading a data set"), "HF_HUB_OFFLINE")
        for name in ("datasets.config", "huggingface_hub.constants")
    ]
    before = [getattr(place, name) for place, name in places]
    for place, name in places:
        setattr(place, name, True)
    try:
        yield
    finally:
        for (place, name), value in zip(places, before, strict=True):
            setattr(place, name, value)


def located(kind: str, source: str | Path, arguments: str) -> tuple[str, Callable[[Path], Any]]:
    """Find a source, without loading a folder.

    A folder's key depends on its contents. A data set of the Hub must be loaded to know its
    revision.

    Args:
        kind: What is made of the source; the key begins with it.
        source: A folder or a Hub id.
        arguments: Everything else that the key depends on.

    Returns:
        The key in the cache, and a function that loads the splits, given a scratch folder.

    Raises:
        ValueError: If the source is neither, or cannot be loaded.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        key = f"{kind}-{fingerprint(arguments, folder)}"
        return key, lambda scratch: load_splits(str(folder), scratch)
    if not is_hub_id(source):
        raise ValueError(
            f"source is {str(source)!r}; give an existing folder, or the id of a data set on the "
            "Hub, owner/name"
        )
    data = load_splits(str(source))
    # the paths of the stored files contain the revision
    files = [file["filename"] for split in sorted(data) for file in data[split].cache_files]
    return f"{kind}-{fingerprint(arguments, str(source), *files)}", lambda scratch: data


def check_splits(
    data: Any, source: str | Path, splits: Sequence[str], names: Sequence[str]
) -> None:
    """Raise ValueError unless all `splits` exist, are not empty and have the columns `names`."""
    for split in splits:
        if split not in data:
            raise ValueError(f"{source} has no split {split!r}; choose from {', '.join(data)}")
        if not len(data[split]):
            raise ValueError(f"{split} of {source} holds 0 examples; it needs at least one")
        for name in names:
            if name not in data[split].column_names:
                raise ValueError(
                    f"{source} has no column {name!r}; choose from "
                    f"{', '.join(data[split].column_names)}"
                )


def read_labels(data: Any, splits: Sequence[str], label: str) -> tuple[list[Labels], Sequence[str]]:
    """Read the labels of all splits.

    Args:
        data: The loaded splits.
        splits: Names of the splits to read, train first.
        label: Name of the column.

    Returns:
        Each split's labels, indices into the classes (N,), and the classes' names. Labels without
        names get the values in the first split as their classes.

    Raises:
        ValueError: If a label is missing or of another type.
    """
    labels = [np.asarray(_values(data[split], split, label)) for split in splits]
    classes: Sequence[str] | None = getattr(data[splits[0]].features[label], "names", None)
    if classes is None:
        *labels, classes = code_labels(*labels)
    return [coded.astype(np.int64) for coded in labels], classes


def read_strings(data: Any, split: str, name: str) -> list[str]:
    """Return a column of class labels, integers or strings as strings."""
    names = getattr(data[split].features[name], "names", None)
    return [
        str(value) if names is None else names[value] for value in _values(data[split], split, name)
    ]


def read_pictures(
    data: Any, source: str | Path, image: str, label: str, columns: Sequence[str], test_split: str
) -> tuple[Encoded, Encoded, Sequence[str]]:
    """Read the pictures of loaded splits.

    Args:
        data: The loaded splits.
        source: Name of the data set, for errors.
        image: Name of the column with the pictures.
        label: Name of the column with the labels.
        columns: Names of more columns to read.
        test_split: Name of the test split.

    Returns:
        Train, test and the names of the classes.

    Raises:
        ValueError: If a split, column or value is missing or of another type.
    """
    splits = ("train", test_split)
    check_splits(data, source, splits, (image, label, *columns))
    labels, classes = read_labels(data, splits, label)
    train, test = (
        _encoded(data, split, image, coded, columns)
        for split, coded in zip(splits, labels, strict=True)
    )
    return train, test, classes


def _encoded(
    data: Any, split: str, image: str, labels: npt.NDArray[np.int64], columns: Sequence[str]
) -> Encoded:
    kind = needed("datasets", "data", "reading a data set").Image
    try:
        raw = data[split].select_columns([image]).cast_column(image, kind(decode=False))
    except Exception as error:  # pyarrow raises many types
        raise ValueError(
            f"column {image!r} of {split} holds {data[split].features[image]}; it must hold images"
        ) from error

    def pictures() -> Iterator[Any]:
        for batch in raw.iter(CHUNK):
            yield from batch[image]

    strings = {name: read_strings(data, split, name) for name in columns}
    return Encoded(
        pictures, kind().decode_example, lambda row: f"row {row} of {split}", labels, strings
    )


def _values(data: Any, split: str, name: str) -> list[Any]:
    """Return a column of integers or strings.

    Raises:
        ValueError: If it is of another type or has a row without a value.
    """
    feature = data.features[name]
    if not re.fullmatch(COLUMN, dtype := str(getattr(feature, "dtype", feature))):
        raise ValueError(
            f"column {name!r} of {split} holds {dtype}; it must hold class labels, integers or "
            "strings"
        )
    values = without_marks(data[name])
    names = getattr(feature, "names", None)
    for row, value in enumerate(values):
        # the Hub's hidden labels are -1
        if value is None or (names is not None and not 0 <= value < len(names)):
            if names is None:
                raise missing(name, row, split)
            raise ValueError(
                f"{name!r} in row {row} of {split} is {value}; it must be from 0 to "
                f"{len(names) - 1}"
            )
    return values


def missing(name: str, row: int, split: str) -> ValueError:
    """Return the error for a row without a value."""
    return ValueError(
        f"{name!r} in row {row} of {split} is missing; give it a value, or leave the row out"
    )


def without_marks(values: Iterable[Any]) -> list[Any]:
    """Return values, strings without the byte order mark that some programs begin a text with."""
    return [value.removeprefix(MARK) if isinstance(value, str) else value for value in values]
