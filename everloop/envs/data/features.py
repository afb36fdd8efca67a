"""Labelled vectors of numbers from arrays, an .npz file or a .csv file."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from everloop.envs.data.arrays import code_labels
from everloop.envs.data.examples import Array, Examples, check_pair

Columns = Mapping[str, npt.ArrayLike]
TEST = "_test"  # ends the name of an array of the test split
NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,17})")
EVERY = 5  # without a test split, every fifth example is for testing


def from_features(
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    x_test: npt.ArrayLike | None = None,
    y_test: npt.ArrayLike | None = None,
    columns: Columns | None = None,
    test_columns: Columns | None = None,
) -> tuple[Examples, Examples]:
    """Return train and test examples made of vectors.

    Args:
        x: Train vectors, numbers (N, D).
        y: Train labels, integers or strings (N,). The classes are these labels, sorted.
        x_test: Test vectors, (N, D) with their own N. None means that every fifth example is a
            test example, counted among those of the same label and columns.
        y_test: Test labels of the same kind.
        columns: Column name -> values (N,), whatever else is known about each example.
        test_columns: The same for the test examples.

    Returns:
        (train, test) examples, inputs float32 (N, D).

    Raises:
        ValueError: If the arrays do not fit together, if a number is missing or infinite, or if
            there is only one class.
    """
    inputs, labels, strings = _checked(x, y, columns or {}, "")
    if (x_test is None) != (y_test is None):
        raise ValueError("only one of x_test and y_test is given; give both or none")
    if x_test is None or y_test is None:
        test = _every_fifth([labels.astype(str), *strings.values()])
        if not test.any():
            raise ValueError(
                f"no class has {EVERY} examples, of which one is for testing; give more of them, "
                "or x_test and y_test"
            )
        test_inputs, test_labels = inputs[test], labels[test]
        test_strings = {name: values[test] for name, values in strings.items()}
        inputs, labels = inputs[~test], labels[~test]
        strings = {name: values[~test] for name, values in strings.items()}
    else:
        test_inputs, test_labels, test_strings = _checked(x_test, y_test, test_columns or {}, TEST)
    coded, test_coded, classes = code_labels(labels, test_labels)
    if len(classes) < 2:
        raise ValueError(f"all labels are {classes[0]!r}; give examples of two classes or more")
    pair = (
        Examples(inputs, coded, classes, strings),
        Examples(test_inputs, test_coded, classes, test_strings),
    )
    check_pair(*pair)
    return pair


def load_features(
    source: str | Path,
    *,
    label: str = "label",
    columns: Sequence[str] = (),
    ignore: Sequence[str] = (),
) -> tuple[Examples, Examples]:
    """Read labelled vectors from a file.

    Args:
        source: An .npz file with the arrays x (N, D) and y (N,), x_test and y_test if the test
            split is not every fifth example, and one array (N,) for each of `columns`, such as
            domain, and domain_test. Or a .csv or .tsv file, whose first row names the columns; all
            that are not named here are features.
        label: Name of a .csv file's column with the labels.
        columns: More columns to keep, as strings.
        ignore: Columns of a .csv file to leave out.

    Returns:
        (train, test) examples, inputs float32 (N, D).

    Raises:
        ValueError: If something is missing or cannot be used. The message is one line.
    """
    path = Path(source).expanduser()
    readers = {".npz": _read_npz, ".csv": _read_csv, ".tsv": _read_csv}
    if path.suffix.lower() not in readers:
        raise ValueError(f"data is {str(source)!r}; give a {', '.join(readers)} file")
    if not path.is_file():
        raise ValueError(f"file {str(source)!r} does not exist; give a {', '.join(readers)} file")
    try:
        return readers[path.suffix.lower()](path, label, columns, ignore)
    except (ValueError, OSError, csv.Error, BadZipFile) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error


def _checked(
    x: npt.ArrayLike, y: npt.ArrayLike, columns: Columns, end: str
) -> tuple[Array, Array, dict[str, Array]]:
    """Return inputs float32 (N, D), labels (N,) and columns of strings (N,)."""
    try:
        numbers, labels = np.asarray(x), np.asarray(y)
    except ValueError:  # numpy's own message does not help the user
        raise ValueError(f"rows of x{end} differ in length; all must have D numbers") from None
    if numbers.dtype.kind not in "iuf" or numbers.ndim != 2 or not numbers.size:
        raise ValueError(
            f"x{end} is {numbers.dtype} of shape {numbers.shape}; it must be numbers (N, D)"
        )
    strings = {name: np.asarray(values).astype(str) for name, values in columns.items()}
    for name, values in {"y": labels, **strings}.items():
        if values.shape != numbers.shape[:1]:
            raise ValueError(
                f"{name}{end} has shape {values.shape}; for {len(numbers)} rows of x{end} it must "
                f"be ({len(numbers)},)"
            )
    with np.errstate(over="ignore"):
        inputs = numbers.astype(np.float32)
    if not np.isfinite(inputs).all():
        row, column = np.argwhere(~np.isfinite(inputs))[0]
        raise ValueError(
            f"x{end} holds {numbers[row, column]} in row {row}, number {column}; all must be "
            "finite, so fill it in or leave the row out"
        )
    return inputs, labels, strings


def _every_fifth(keys: Sequence[Array]) -> npt.NDArray[np.bool_]:
    """Return True for every fifth of the examples that are alike in all `keys`, (N,) each."""
    alike = np.zeros(len(keys[0]), dtype=np.int64)
    for key in keys:
        _, number = np.unique(key, return_inverse=True)
        _, alike = np.unique(alike * (number.max() + 1) + number, return_inverse=True)
    test = np.zeros(len(alike), dtype=np.bool_)
    for group in range(alike.max() + 1):
        test[np.flatnonzero(alike == group)[EVERY - 1 :: EVERY]] = True
    return test


def _read_npz(
    path: Path, label: str, columns: Sequence[str], ignore: Sequence[str]
) -> tuple[Examples, Examples]:
    with np.load(path, allow_pickle=False) as file:

        def split(end: str) -> tuple[Array, Array, dict[str, Array]]:
            for name in ("x", "y", *columns):
                if f"{name}{end}" not in file.files:
                    raise ValueError(
                        f"there is no array {name + end!r}; it has {', '.join(file.files)}"
                    )
            return file[f"x{end}"], file[f"y{end}"], {name: file[name + end] for name in columns}

        x, y, strings = split("")
        if not {f"x{TEST}", f"y{TEST}"} & set(file.files):
            return from_features(x, y, columns=strings)
        return from_features(x, y, *split(TEST)[:2], strings, split(TEST)[2])


def _read_csv(
    path: Path, label: str, columns: Sequence[str], ignore: Sequence[str]
) -> tuple[Examples, Examples]:
    header, lines, rows = _read_rows(path)
    for name in (label, *columns, *ignore):
        if name not in header:
            raise ValueError(f"there is no column {name!r}; choose from {', '.join(header)}")
    cells = dict(zip(header, zip(*rows, strict=True), strict=True))
    for name in (label, *columns):
        for line, cell in zip(lines, cells[name], strict=True):
            if not cell:
                raise ValueError(f"line {line} has no {name!r}; fill it in, or leave the row out")
    features = [name for name in header if name not in {label, *columns, *ignore}]
    if not features:
        raise ValueError(f"no column is left for features; it has {', '.join(header)} only")
    x = np.stack([_numbers(name, cells[name], lines) for name in features], axis=1)
    y = np.array(cells[label])
    if all(NUMBER.fullmatch(cell) for cell in cells[label]):  # 10 comes after 2
        y = y.astype(np.int64)
    return from_features(x, y, columns={name: cells[name] for name in columns})


def _read_rows(path: Path) -> tuple[list[str], list[int], list[list[str]]]:
    """Return the names of the columns, and of each row its line and its cells."""
    rows = []
    lines = []
    with open(path, encoding="utf-8-sig", newline="") as file:  # without a byte order mark
        reader = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        for row in reader:
            if row:
                rows.append([cell.strip() for cell in row])
                lines.append(reader.line_num)
    if len(rows) < 2:
        raise ValueError("there are no rows; give the names of the columns, then one row each")
    header = rows.pop(0)
    lines.pop(0)
    for name in header:
        if not name or header.count(name) > 1:
            raise ValueError(
                f"the columns are {', '.join(map(repr, header))}; each needs a name of its own"
            )
    for line, row in zip(lines, rows, strict=True):
        if len(row) != len(header):
            raise ValueError(
                f"line {line} has {len(row)} cells; it needs {len(header)}, one for each column"
            )
    return header, lines, rows


def _numbers(name: str, cells: Sequence[str], lines: Sequence[int]) -> npt.NDArray[np.float64]:
    """Return a column of features, (N,)."""
    numbers = np.empty(len(cells))
    for i, cell in enumerate(cells):
        try:
            numbers[i] = float(cell)
        except ValueError:
            numbers[i] = np.nan
        if not np.isfinite(numbers[i]):
            what = (
                f"{name!r} is {cell!r} in line {lines[i]}, not a number"
                if cell
                else f"line {lines[i]} has no {name!r}"
            )
            raise ValueError(
                f"{what}; correct it, leave the row out, or the column by naming it in ignore"
            )
    return numbers
