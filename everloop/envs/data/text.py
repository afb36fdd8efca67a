"""Labelled texts: of the Hugging Face Hub, of a folder in its layout, or folders of text files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from everloop.envs.data.cache import cached
from everloop.envs.data.examples import Array, Examples, opened
from everloop.envs.data.hub import check_splits, located, read_labels, read_strings
from everloop.envs.data.tokens import HashTokenizer, Tokenizer

FORMAT = "1"  # of what the cache keeps: with another one, nothing kept before is found
Splits = tuple[str, str]
ClassFiles = Mapping[str, Sequence[Path]]  # class name -> its texts


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
    """Train and test examples, tokenized once; from then on they are mapped into memory from the
    cache.

    source: a data set's id on the Hugging Face Hub, or a folder in its layout (parquet, csv or json
        lines, for some).
    tokenizer: `HashTokenizer()` if none. length: tokens that are kept of a text.
    text, label: names of the columns with the texts and with the labels: class labels, integers or
        strings.
    columns: more columns to keep, of class labels, integers or strings; all become strings. Needs
    the extra `data`, but nothing for a folder which is in the cache. Raises ValueError for what is
    missing or can't be used, and keeps nothing of it.
    """
    tokens, names = checked(tokenizer, length), (text, label, *columns)
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
    """Train and test examples of any labelled text folders, each a domain: column "domain", with
    the folder's name.

    folders: each with `<class>/*.txt`, of which every fifth file of a class, by name, is for tests;
        or with `train/<class>/*.txt` and `test/<class>/*.txt`. All have the same classes. The files
        are UTF-8.
    tokenizer, length: as in `load_text`.
    Raises ValueError for what is missing, and naming the file that can't be read.
    """
    tokens, roots = checked(tokenizer, length), [Path(folder).expanduser() for folder in folders]
    if not roots:
        raise ValueError("folders are empty, allowed: one or more, each with <class>/*.txt")
    if len({root.name for root in roots}) < len(roots):
        raise ValueError(
            f"folders are {', '.join(map(str, roots))}, allowed: each with another name"
        )
    found = [_text_files(root) for root in roots]
    classes = sorted(found[0][0])
    for root, splits in zip(roots, found, strict=True):
        for odd in sorted(set(classes) ^ set(splits[0]) | set(classes) ^ set(splits[1])):
            raise ValueError(
                f"class {odd!r} is not in {roots[0]} and both splits of {root} alike, allowed: the "
                "same classes in all"
            )
    train, test = (
        _of_folders([splits[s] for splits in found], [root.name for root in roots], tokens, length)
        for s in range(2)
    )
    return train, test


def _of_folders(
    found: Sequence[ClassFiles], domains: Sequence[str], tokens: Tokenizer, length: int
) -> Examples:
    classes = sorted(found[0])
    rows = [
        (domain, classes.index(name), path)
        for domain, files in zip(domains, found, strict=True)
        for name, paths in files.items()
        for path in paths
    ]
    of, labels, paths = zip(*rows, strict=True)
    inputs = tokens.encode([_read(path) for path in paths], length)
    return Examples(inputs, np.array(labels), classes, {"domain": np.array(of)}, tokens.vocabulary)


def checked(tokenizer: Tokenizer | None, length: int) -> Tokenizer:
    """The tokenizer, or the one by default. Raises ValueError for a length below 1."""
    if length < 1:
        raise ValueError(f"length is {length}, allowed: 1 or more")
    return HashTokenizer() if tokenizer is None else tokenizer


def arrays_of(
    data: Any,
    splits: Splits,
    inputs: Sequence[Array],
    labels: Sequence[Array],
    classes: Sequence[str],
    columns: Sequence[str],
) -> dict[str, Array]:
    """What the cache keeps of both splits, as `opened` wants it."""
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
    """Train and test examples from the cache, which `read(scratch folder)` fills if need be."""

    def build() -> dict[str, Array]:
        with TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
            return {**read(Path(scratch)), "levels": np.array(vocabulary)}

    arrays = cached(key, build)
    return opened(arrays, "train"), opened(arrays, "test")


def _texts(data: Any, split: str, name: str) -> list[str]:
    if str(getattr(data[split].features[name], "dtype", "")) not in ("string", "large_string"):
        raise ValueError(
            f"column {name!r} of {split} holds {data[split].features[name]}, allowed: strings"
        )
    texts = list(data[split][name])
    if None in texts:
        raise ValueError(
            f"{name!r} in row {texts.index(None)} of {split} is None, allowed: a string"
        )
    return texts


def _text_files(root: Path) -> tuple[ClassFiles, ClassFiles]:
    """Train and test files of each class."""
    if not root.is_dir():
        raise ValueError(f"folder is {str(root)!r}, allowed: one that exists, with <class>/*.txt")
    if (root / "train").is_dir() and (root / "test").is_dir():
        return _by_class(root / "train"), _by_class(root / "test")
    files = _by_class(root)
    for name, paths in files.items():
        if len(paths) < 5:
            raise ValueError(
                f"{root / name} has {len(paths)} texts, allowed: 5 or more, of which every fifth "
                "is for tests"
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
        raise ValueError(f"{folder} has no texts, allowed: <class>/*.txt")
    return files


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} can't be read as UTF-8 text ({type(error).__name__})") from error
