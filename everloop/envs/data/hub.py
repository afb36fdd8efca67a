"""Data sets of the Hugging Face Hub, and folders in its layout."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Callable, Iterator, Sequence
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

# types of labels and of further columns; class labels are int64 with names
COLUMN = r"u?int\d+|(large_)?string"


class Unreachable(ValueError):
    """A data set of the Hub is not stored here, and the Hub does not answer."""


def is_hub_id(source: str | Path) -> bool:
    """True if it can be meant as one: `owner/name`."""
    return isinstance(source, str) and re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source) is not None


def load_splits(source: str, scratch: Path | None = None) -> Any:
    """The splits by name, each a `datasets.Dataset`; with `scratch` what the library writes on the
    way goes there.

    Raises ValueError, in one line, for what can't be found, reached or read.
    """
    datasets = needed("datasets", "data", "reading a data set")
    answers = scratch is not None or hub_answers()
    try:
        with contextlib.nullcontext() if answers else offline():
            return datasets.load_dataset(
                source, cache_dir=None if scratch is None else str(scratch)
            )
    except (
        Exception
    ) as error:  # of the network, the Hub, the file system, or of the reader of any format
        if not answers or isinstance(error, ConnectionError):
            raise Unreachable(
                f"data set {source} can't be reached, and is not stored here"
            ) from error
        allowed = (
            "one of the Hub that can be reached or was before"
            if scratch is None
            else "a folder in the layout of the Hub"
        )
        raise ValueError(
            f"data set {source} can't be loaded ({first_line(error)}), allowed: {allowed}"
        ) from error


def hub_answers() -> bool:
    """True if the Hub can be reached; also where a proxy stands in between, since only a request
    would tell.
    """
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
    """The libraries of the Hub use what they have stored, and do not try for half a minute to reach
    it.
    """
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
    """The cache's key for what is made of a source, `kind`-..., and what loads its splits given a
    scratch folder.

    A folder's key tells its contents, and nothing is loaded before it is called for; a data set of
    the Hub has to be loaded to know its revision. Raises ValueError for what is neither.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return f"{kind}-{fingerprint(arguments, folder)}", lambda scratch: load_splits(
            str(folder), scratch
        )
    if not is_hub_id(source):
        raise ValueError(
            f"source is {str(source)!r}, allowed: a folder that exists, or the id of a data set on "
            "the Hub, owner/name"
        )
    data = load_splits(str(source))
    files = [
        file["filename"] for split in sorted(data) for file in data[split].cache_files
    ]  # their paths tell the revision
    return f"{kind}-{fingerprint(arguments, str(source), *files)}", lambda scratch: data


def check_splits(
    data: Any, source: str | Path, splits: Sequence[str], names: Sequence[str]
) -> None:
    """Raise ValueError unless all `splits` are there with an example or more, and have the columns
    `names`.
    """
    for split in splits:
        if split not in data:
            raise ValueError(f"{source} has no split {split!r}, there are: {', '.join(data)}")
        if not len(data[split]):
            raise ValueError(f"{split} of {source} holds 0 examples, allowed: 1 or more")
        for name in names:
            if name not in data[split].column_names:
                raise ValueError(
                    f"{source} has no column {name!r}, there are: "
                    f"{', '.join(data[split].column_names)}"
                )


def read_labels(data: Any, splits: Sequence[str], label: str) -> tuple[list[Labels], Sequence[str]]:
    """Each split's labels, (N,) positions among the classes, and the classes; of labels without
    names those of the first split.
    """
    labels = [np.asarray(_values(data[split], split, label)) for split in splits]
    classes: Sequence[str] | None = getattr(data[splits[0]].features[label], "names", None)
    if classes is None:
        *labels, classes = code_labels(*labels)
    return [coded.astype(np.int64) for coded in labels], classes


def read_strings(data: Any, split: str, name: str) -> list[str]:
    """A column of class labels, integers or strings, as strings."""
    names = getattr(data[split].features[name], "names", None)
    return [
        str(value) if names is None else names[value] for value in _values(data[split], split, name)
    ]


def read_pictures(
    data: Any, source: str | Path, image: str, label: str, columns: Sequence[str], test_split: str
) -> tuple[Encoded, Encoded, Sequence[str]]:
    """Train, test and the classes of loaded splits.

    Raises ValueError for what is missing or of another type.
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
    except Exception as error:  # pyarrow has a type for every misfit
        raise ValueError(
            f"column {image!r} of {split} holds {data[split].features[image]}, allowed: images"
        ) from error

    def pictures() -> Iterator[Any]:
        for batch in raw.iter(CHUNK):
            yield from batch[image]

    strings = {name: read_strings(data, split, name) for name in columns}
    return Encoded(
        pictures, kind().decode_example, lambda row: f"row {row} of {split}", labels, strings
    )


def _values(data: Any, split: str, name: str) -> list[Any]:
    """A column of integers or strings.

    Raises ValueError for another type, and for a row without a value.
    """
    feature = data.features[name]
    if not re.fullmatch(COLUMN, dtype := str(getattr(feature, "dtype", feature))):
        raise ValueError(
            f"column {name!r} of {split} holds {dtype}, allowed: class labels, integers or strings"
        )
    values, names = list(data[name]), getattr(feature, "names", None)
    for row, value in enumerate(values):
        if value is None or (
            names is not None and not 0 <= value < len(names)
        ):  # the Hub's hidden labels are -1
            allowed = "one" if names is None else f"0 to {len(names) - 1}"
            raise ValueError(f"{name!r} in row {row} of {split} is {value}, allowed: {allowed}")
    return values
