"""Vectors from arrays and files: exact values, the test split, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from everloop.envs.data import from_features, from_tasks, load_features

X = np.random.default_rng(0).normal(size=(30, 3))
Y = np.arange(30) % 3
SITES = np.array(list("ab"))[np.arange(30) // 3 % 2]


def write(path: Path, rows: list[list[Any]], separator: str = ",", mark: str = "") -> Path:
    path.write_text(mark + "\n".join(separator.join(map(str, row)) for row in rows), "utf-8")
    return path


def table() -> list[list[Any]]:
    """Return a table whose labels, 2 and 10, are sorted as numbers, with features x and z."""
    rows = [[f"n{i}", X[i, 0], [2, 10, 11][Y[i]], X[i, 1], SITES[i]] for i in range(30)]
    return [["id", "x", "kind", "z", "site"], *rows]


def test_every_fifth_example_of_a_class_and_column_is_for_testing() -> None:
    train, test = from_features(X, Y, columns={"site": SITES})
    expected = np.zeros(30, bool)
    for group in {(y, site) for y, site in zip(Y, SITES, strict=True)}:
        alike = [i for i in range(30) if (Y[i], SITES[i]) == group]
        expected[alike[4::5]] = True
    for part, rows in ((train, ~expected), (test, expected)):
        np.testing.assert_array_equal(part.inputs, X[rows].astype(np.float32))
        assert part.labels.tolist() == Y[rows].tolist()
        assert part.columns["site"].tolist() == SITES[rows].tolist()
        assert (part.inputs.dtype, part.classes) == (np.float32, ("0", "1", "2"))


def test_a_test_split_of_ones_own_is_kept() -> None:
    train, test = from_features(X, Y, X[:4] + 1, Y[:4])
    np.testing.assert_array_equal(train.inputs, X.astype(np.float32))
    np.testing.assert_array_equal(test.inputs, (X[:4] + 1).astype(np.float32))


@pytest.mark.parametrize(
    ("name", "separator", "mark"), [("t.csv", ",", ""), ("t.tsv", "\t", "\ufeff")]
)
def test_a_table_gives_its_numbers_labels_and_columns(
    name: str, separator: str, mark: str, tmp_path: Path
) -> None:
    path = write(tmp_path / name, table(), separator, mark)
    pair = load_features(path, label="kind", columns=["site"], ignore=["id"])
    expected = from_features(X[:, :2], Y, columns={"site": SITES})
    for part, own in zip(pair, expected, strict=True):
        np.testing.assert_array_equal(part.inputs, own.inputs)
        assert part.labels.tolist() == own.labels.tolist()
        assert part.columns["site"].tolist() == own.columns["site"].tolist()
        assert part.classes == ("2", "10", "11")


def test_labels_that_only_look_like_numbers_stay_as_they_are(tmp_path: Path) -> None:
    rows = table()
    for row in rows[1:]:
        row[2] = {2: "007", 10: "7", 11: "9" * 30}[row[2]]
    train, _ = load_features(
        write(tmp_path / "t.csv", rows), label="kind", columns=["site"], ignore=["id"]
    )
    assert train.classes == ("007", "7", "9" * 30)


@pytest.mark.parametrize("with_test", [False, True])
def test_an_npz_file_gives_its_arrays(with_test: bool, tmp_path: Path) -> None:
    test = {"x_test": X[:6], "y_test": Y[:6], "site_test": SITES[:6]} if with_test else {}
    np.savez(tmp_path / "f.npz", x=X, y=Y, site=SITES, **test)  # type: ignore[arg-type]
    pair = load_features(tmp_path / "f.npz", columns=["site"])
    tests = (X[:6], Y[:6]) if with_test else ()
    columns = ({"site": SITES}, {"site": SITES[:6]}) if with_test else ({"site": SITES},)
    for part, own in zip(
        pair,
        from_features(
            *(X, Y, *tests), **dict(zip(("columns", "test_columns"), columns, strict=False))
        ),
        strict=True,
    ):
        np.testing.assert_array_equal(part.inputs, own.inputs)
        np.testing.assert_array_equal(part.labels, own.labels)
        np.testing.assert_array_equal(part.columns["site"], own.columns["site"])


def changed(line: int, column: int, value: str) -> list[list[Any]]:
    """Return the table with another cell; line 1 holds the names."""
    rows = table()
    rows[line - 1][column] = value
    return rows


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (changed(4, 1, "red"), "'x' is 'red' in line 4, not a number; correct it, leave the row"),
        (changed(4, 1, "NA"), "'x' is 'NA' in line 4, not a number; correct it"),
        (changed(4, 1, "inf"), "'x' is 'inf' in line 4, not a number; correct it"),
        (changed(4, 3, " "), "line 4 has no 'z'; correct it, leave the row out, or the column by"),
        (changed(5, 2, ""), "line 5 has no 'kind'; fill it in, or leave the row out"),
        (changed(5, 4, ""), "line 5 has no 'site'; fill it in, or leave the row out"),
        (
            [*table(), ["n", 1, 2]],
            "line 32 has 3 cells; it needs 5, one for each column",
        ),
        (changed(1, 1, "z"), "the columns are 'id', 'z', 'kind', 'z', 'site'; each needs a name"),
        (changed(1, 2, "sort"), "there is no column 'kind'; choose from id, x, sort, z, site"),
        (table()[:1], "there are no rows; give the names of the columns, then one row each"),
        ([row[:1] + row[2:3] + row[4:] for row in table()], "no column is left for features"),
        (table()[:1] + table()[1::3], "all labels are '2'; give examples of two classes or more"),
        (table()[:5], "no class has 5 examples, of which one is for testing; give more of them"),
    ],
)
def test_a_bad_table_is_refused_in_one_line(
    rows: list[list[Any]], said: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "t.csv", rows)
    with pytest.raises(ValueError, match=r"^.*t\.csv: ") as caught:
        load_features(path, label="kind", columns=["site"], ignore=["id"])
    assert str(caught.value).startswith(f"{path}: {said}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"x": X.astype(str)}, "x is <U32 of shape (30, 3); it must be numbers (N, D)"),
        ({"x": X[:, 0]}, "x is float64 of shape (30,); it must be numbers (N, D)"),
        ({"x": [[1, 2], [3]]}, "rows of x differ in length; all must have D numbers"),
        ({"y": Y[:7]}, "y has shape (7,); for 30 rows of x it must be (30,)"),
        ({"columns": {"site": SITES[:7]}}, "site has shape (7,); for 30 rows of x it must be (30"),
        ({"x": np.where(X[4, 1] == X, np.nan, X)}, "x holds nan in row 4, number 1; all must be"),
        ({"x": np.where(X[4, 1] == X, 1e300, X)}, "x holds 1e+300 in row 4, number 1; all must"),
        ({"y": Y / 2}, "labels have dtype float64; they must be integers or strings"),
        ({"x_test": X}, "only one of x_test and y_test is given; give both or none"),
        ({"x_test": X[:, :2], "y_test": Y}, "a test example has shape (2,); it must be (3,)"),
        ({"x_test": X, "y_test": Y + 1}, "label 3 is in the test labels only"),
    ],
)
def test_bad_arrays_are_refused_in_one_line(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        from_features(**{"x": X, "y": Y, **changes})
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


def test_several_sets_of_vectors_are_tasks_of_one() -> None:
    parts = {"first": from_features(X, Y), "second": from_features(X + 1, Y + 2)}
    train, _ = from_tasks(parts)
    for name, part in parts.items():
        rows = train.columns["task"] == name
        np.testing.assert_array_equal(train.inputs[rows], part[0].inputs)
        assert [train.classes[c] for c in train.labels[rows]] == [
            part[0].classes[c] for c in part[0].labels
        ]


def test_a_file_that_is_missing_or_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.npz").write_bytes(b"no archive")
    np.savez(tmp_path / "few.npz", x=X)
    for name, said in {
        "t.xlsx": r"^data is '.*t\.xlsx'; give a \.npz, \.csv, \.tsv file$",
        "none.csv": r"^file '.*none\.csv' does not exist; give a ",
        "bad.npz": r"bad\.npz: ",
        "few.npz": r"few\.npz: there is no array 'y'; it has x$",
    }.items():
        with pytest.raises(ValueError, match=said):
            load_features(tmp_path / name)
