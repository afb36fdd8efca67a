"""Folders of pictures, train/<class>/<picture>: what is read, in which order, what is refused."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_sets import noise, write_folders

from everloop.envs.data.images import load_images


@pytest.fixture(autouse=True)
def without_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)  # reading folders must not need it


@pytest.mark.parametrize("test_split", ["test", "val", "validation", "held-out"])
def test_a_class_is_a_folder_and_its_pictures_are_sorted_by_name(
    tmp_path: Path, test_split: str
) -> None:
    """In every lossless format, also in nested folders. Other and hidden files are ignored."""
    train = {
        f"train/{name}": noise(6, 7, 3, seed=i)
        for i, name in enumerate(["ant/1.png", "ant/2.PNG", "ant/x/0.bmp", "bee/0.webp"])
    }
    test = {
        f"{test_split}/{name}": noise(6, 7, 3, seed=9 + i)
        for i, name in enumerate(["bee/0.png", "bee/1.png"])
    }
    root = write_folders(tmp_path / "set", dict(reversed([*train.items(), *test.items()])))
    (root / "train" / "none").mkdir()
    for stray in (
        "train/ant/notes.txt",
        "train/ant/._1.png",
        "train/.ipynb_checkpoints/1.png",
        "train/README.md",
        "labels.csv",
    ):
        (root / stray).parent.mkdir(exist_ok=True)
        (root / stray).write_text("no picture")
    for _ in range(2):
        loaded = load_images(root, test_split="held-out" if test_split == "held-out" else "test")
        for examples, pictures, labels in zip(
            loaded, (train, test), ([0, 0, 0, 1], [1, 1]), strict=True
        ):
            np.testing.assert_array_equal(examples.inputs, np.stack(list(pictures.values())))
            assert examples.labels.tolist() == labels
            assert examples.classes == ("ant", "bee")


def test_a_test_folder_takes_precedence_over_a_validation_folder(tmp_path: Path) -> None:
    pictures = {
        f"{split}/a/0.png": noise(4, 4, seed=i) for i, split in enumerate(["train", "val", "test"])
    }
    root = write_folders(tmp_path / "set", pictures)
    for split in ("test", "val"):
        np.testing.assert_array_equal(
            load_images(root, test_split=split)[1].inputs[0, ..., 0], pictures[f"{split}/a/0.png"]
        )


@pytest.mark.parametrize(
    ("changes", "arguments", "line"),
    [
        (
            {"test/c/0.png": noise(4, 4)},
            {},
            r"^class 'c' is in .*test only; .*train must have it too$",
        ),
        (
            {"train/a/1.png": noise(4, 5)},
            {},
            (
                r"1\.png has size \(4, 5\) but the first picture has size \(4, 4\); "
                "set `size` to scale all pictures to it"
            ),
        ),
        ({}, {"test_split": "dev"}, "set has no folder dev; its folders are test, train$"),
        (
            {},
            {"columns": ["domain"]},
            (
                r"^columns are \('image', 'label', 'domain'\); the folder of pictures .*set has "
                r"\('image', 'label'\) only$"
            ),
        ),
        (
            {},
            {"label": "class"},
            (
                r"^columns are \('image', 'class'\); the folder of pictures .*set has \('image', "
                r"'label'\) only$"
            ),
        ),
    ],
)
def test_a_bad_folder_or_argument_is_refused_and_nothing_is_cached(
    tmp_path: Path, cache: Path, changes: dict[str, Any], arguments: dict[str, Any], line: str
) -> None:
    pictures = {
        f"{split}/{name}/0.png": noise(4, 4) for split in ("train", "test") for name in "ab"
    } | changes
    root = write_folders(tmp_path / "set", pictures)
    with pytest.raises(ValueError, match=line) as caught:
        load_images(root, **arguments)
    assert "\n" not in str(caught.value)
    assert not cache.exists() or list(cache.iterdir()) == []


@pytest.fixture
def two_pictures(tmp_path: Path) -> Path:
    """A folder with one picture per split."""
    return write_folders(
        tmp_path / "set", {"train/a/0.png": noise(4, 4), "test/a/0.png": noise(4, 4)}
    )


def test_a_broken_file_is_refused_by_its_path(two_pictures: Path, cache: Path) -> None:
    (two_pictures / "test" / "a" / "0.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(
        ValueError, match=r"^.*test/a/0.png can't be read as an image \(UnidentifiedImageError\)$"
    ):
        load_images(two_pictures)
    assert list(cache.iterdir()) == []


def test_a_split_without_pictures_is_refused(two_pictures: Path, cache: Path) -> None:
    (two_pictures / "test" / "a" / "0.png").unlink()
    with pytest.raises(
        ValueError,
        match=(
            r"test has no pictures; it must hold <class>/<picture> with one of \.bmp, \.jpeg, "
            r"\.jpg, \.png, \.webp$"
        ),
    ):
        load_images(two_pictures)
    assert not cache.exists() or list(cache.iterdir()) == []


@pytest.mark.parametrize("missing", ["PIL", "PIL.Image"])
def test_without_pillow_the_error_names_the_extra(
    two_pictures: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    """A missing library must not look like a broken file."""
    for name in {"PIL", "PIL.Image"} - {missing}:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(
        ImportError, match=r'^reading images needs the package PIL: pip install "everloop\[data\]"$'
    ):
        load_images(two_pictures)
