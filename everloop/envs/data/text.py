"""Labelled texts from the Hugging Face Hub, a folder in its layout, or folders of text files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from everloop.envs.data.cache import cached
from everloop.envs.data.examples import Array, Examples, opened
from everloop.envs.data.hub import (
    check_splits,
    located,
    missing,
    read_labels,
    read_strings,
    without_marks,
)
from everloop.envs.data.tokens import HashTokenizer, Tokenizer

FORMAT = "2"  # version of the stored arrays; changing it makes the cache forget older ones
Splits = tuple[str, str]
ClassFiles = Mapping[str, Sequence[Path]]
"""Class name -> the files of its texts."""


def load_text(
    source: str | Path,
    *,
    tokenizer: Tokenizer | None = None,
    length: int = 128,
    text: str = "text",
    label: str = "label",
    columns: Sequence[str] = (),
    test_split: str = "test",
) -> tuple[Examples, Examples]:
    """Load labelled texts. The first call tokenizes them; later ones map them from the cache.

    Needs the extra `data`, unless the source is a folder that is already in the cache. If a call
    fails, the cache keeps nothing of it.

    Args:
        source: A data set's id on the Hugging Face Hub, or a folder in its layout, such as parquet,
            csv or json lines files. Every cell of a csv file is a value, also "NA", "null" and an
            empty one, which is the empty string.
        tokenizer: Turns texts into token ids. None means `HashTokenizer()`.
        length: Tokens to keep of each text, 1 or more.
        text: Name of the column with the texts.
        label: Name of the column with the labels: class labels, integers or strings.
        columns: More columns to keep, of class labels, integers or strings. All become strings.
        test_split: Name of the test split. The train split is "train".

    Returns:
        (train, test) examples, token ids int32 (N, length), padded with 0.

    Raises:
        ValueError: If something is missing or cannot be used.
        ImportError: If the extra `data` is needed and not installed.
    """
    tokens = checked(tokenizer, length)
    names = (text, label, *columns)
    key, splits = located("texts", source, repr((FORMAT, tokens.name, length, names, test_split)))

    def read(scratch: Path) -> dict[str, Array]:
        data = splits(scratch)
        both = ("train", test_split)
        check_splits(data, source, both, names)
        labels, classes = read_labels(data, both, label)
        texts = [_texts(data, split, text) for split in both]
        inputs = [tokens.encode(part, length) for part in texts]
        return arrays_of(data, both, inputs, labels, classes, columns)

    return kept(key, read, tokens.vocabulary)


def text_folders(
    folders: Sequence[str | Path], *, tokenizer: Tokenizer | None = None, length: int = 128
) -> tuple[Examples, Examples]:
    """Read labelled text folders, each of them a domain.

    Args:
        folders: Folders with `train/<class>/*.txt` and `test/<class>/*.txt`; or with
            `<class>/*.txt`, of which every fifth file of a class, by name, is a test example. All
            have the same classes. The files are UTF-8.
        tokenizer: As in `load_text`.
        length: As in `load_text`.

    Returns:
        (train, test) examples, token ids int32 (N, length), with the column "domain", the name of
        the folder.

    Raises:
        ValueError: If something is missing or a file cannot be read.
    """
    tokens = checked(tokenizer, length)
    roots = [Path(folder).expanduser() for folder in folders]
    if not roots:
        raise ValueError("folders is empty; give at least one folder with <class>/*.txt")
    if len({root.name for root in roots}) < len(roots):
        raise ValueError(
            f"folders are {', '.join(map(str, roots))}; each must have another name, which is its "
            "domain"
        )
    found = [_text_files(root) for root in roots]
    classes = sorted(found[0][0])
    for root, splits in zip(roots, found, strict=True):
        for odd in sorted(set(classes) ^ set(splits[0]) | set(classes) ^ set(splits[1])):
            raise ValueError(
                f"class {odd!r} is not in both {roots[0]} and all of {root}; all folders and "
                "splits must have the same classes"
            )
    train, test = (
        _of_folders([splits[s] for splits in found], [root.name for root in roots], tokens, length)
        for s in range(2)
    )
    return train, test


def _of_folders(
    found: Sequence[ClassFiles], domains: Sequence[str], tokens: Tokenizer, length: int
) -> Examples:
    """Read one split of all folders: their files by class, and their domains."""
    classes = sorted(found[0])
    texts = [
        (path, classes.index(name), domain)
        for domain, files in zip(domains, found, strict=True)
        for name, paths in files.items()
        for path in paths
    ]
    inputs = tokens.encode([_read(path) for path, _, _ in texts], length)
    labels = np.array([label for _, label, _ in texts])
    columns = {"domain": np.array([domain for _, _, domain in texts])}
    return Examples(inputs, labels, classes, columns, tokens.vocabulary)


def checked(tokenizer: Tokenizer | None, length: int) -> Tokenizer:
    """Return the tokenizer or the default one; raise ValueError if `length` is below 1."""
    if length < 1:
        raise ValueError(f"length is {length}; it must be 1 or more")
    return HashTokenizer() if tokenizer is None else tokenizer


def arrays_of(
    data: Any,
    splits: Splits,
    inputs: Sequence[Array],
    labels: Sequence[Array],
    classes: Sequence[str],
    columns: Sequence[str],
) -> dict[str, Array]:
    """Return the arrays to store of both splits, as `opened` reads them.

    Args:
        data: The loaded splits, for the columns.
        splits: Names of the train and the test split in `data`.
        inputs: Token ids of each split.
        labels: Labels of each split.
        classes: Names of the classes.
        columns: Names of the columns to keep.
    """
    arrays: dict[str, Array] = {"classes": np.asarray(classes, np.str_)}
    for name, split, ids, numbers in zip(("train", "test"), splits, inputs, labels, strict=True):
        arrays |= {f"{name}/inputs": ids, f"{name}/labels": numbers}
        arrays |= {
            f"{name}/columns/{column}": np.asarray(read_strings(data, split, column), np.str_)
            for column in columns
        }
    return arrays


def kept(
    key: str, read: Callable[[Path], Mapping[str, Array]], vocabulary: int
) -> tuple[Examples, Examples]:
    """Return train and test examples from the cache, which is filled if necessary.

    Args:
        key: Key in the cache.
        read: `read(scratch folder)` returns the arrays of `arrays_of`.
        vocabulary: Size of the vocabulary.
    """

    def build() -> dict[str, Array]:
        with TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
            return {**read(Path(scratch)), "levels": np.array(vocabulary)}

    arrays = cached(key, build)
    return opened(arrays, "train"), opened(arrays, "test")


def _texts(data: Any, split: str, name: str) -> list[str]:
    if str(getattr(data[split].features[name], "dtype", "")) not in ("string", "large_string"):
        raise ValueError(
            f"column {name!r} of {split} holds {data[split].features[name]}; it must hold strings"
        )
    texts = without_marks(data[split][name])
    if None in texts:
        raise missing(name, texts.index(None), split)
    return texts


def _text_files(root: Path) -> tuple[ClassFiles, ClassFiles]:
    """Return the train and test files of each class."""
    if not root.is_dir():
        raise ValueError(f"folder {str(root)!r} does not exist; give one with <class>/*.txt")
    if (root / "train").is_dir() and (root / "test").is_dir():
        return _by_class(root / "train"), _by_class(root / "test")
    files = _by_class(root)
    for name, paths in files.items():
        if len(paths) < 5:
            raise ValueError(
                f"{root / name} has {len(paths)} texts; it needs 5 or more, because every fifth "
                "is a test example"
            )
    train = {
        name: [path for i, path in enumerate(paths) if i % 5 < 4] for name, paths in files.items()
    }
    return train, {name: paths[4::5] for name, paths in files.items()}


def _by_class(folder: Path) -> ClassFiles:
    classes = sorted(
        path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    )
    files = {path.name: sorted(path.rglob("*.txt")) for path in classes}
    files = {name: paths for name, paths in files.items() if paths}
    if not files:
        raise ValueError(f"{folder} has no texts; it must hold <class>/*.txt")
    return files


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")  # without a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} can't be read as UTF-8 text ({type(error).__name__})") from error
