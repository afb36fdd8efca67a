"""Folders of pictures, one a class: with splits, and as ImageNet-256 without."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from data_sets import noise, write_folders

from everloop.envs.data.images import load_images
from everloop.envs.data.kaggle import imagenet256


@pytest.fixture(autouse=True)
def no_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)  # not needed for folders


@pytest.mark.parametrize("test_split", ["test", "val", "validation", "held-out"])
def test_a_folder_is_a_class_and_its_pictures_are_in_the_order_of_their_names(
    tmp_path: Path, test_split: str
) -> None:
    """In every format that loses nothing, nested or not; other files and hidden ones don't
    count.
    """
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


def test_test_is_test_where_there_is_a_validation_split_too(tmp_path: Path) -> None:
    pictures = {
        f"{split}/a/0.png": noise(4, 4, seed=i) for i, split in enumerate(["train", "val", "test"])
    }
    root = write_folders(tmp_path / "set", pictures)
    for split in ("test", "val"):
        np.testing.assert_array_equal(
            load_images(root, test_split=split)[1].inputs[0, ..., 0], pictures[f"{split}/a/0.png"]
        )


def test_a_photo_is_turned_the_way_its_camera_says(tmp_path: Path) -> None:
    from PIL import Image

    image, tag = noise(5, 8, 3), Image.Exif()
    tag[0x0112] = 6  # the top is on the right: a quarter turn clockwise
    for split in ("train", "test"):
        (tmp_path / "set" / split / "a").mkdir(parents=True)
        Image.fromarray(image).save(tmp_path / "set" / split / "a" / "0.png", exif=tag)
    np.testing.assert_array_equal(load_images(tmp_path / "set")[0].inputs[0], np.rot90(image, -1))


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
                r"1\.png has size \(4, 5\) and the first picture \(4, 4\); give a size to scale "
                "them to$"
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
def test_what_is_wrong_is_named_and_nothing_is_kept(
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


def test_a_broken_file_and_an_empty_split_are_named(tmp_path: Path, cache: Path) -> None:
    root = write_folders(
        tmp_path / "set", {"train/a/0.png": noise(4, 4), "test/a/0.png": noise(4, 4)}
    )
    (root / "test" / "a" / "0.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(
        ValueError, match=r"^.*test/a/0.png can't be read as an image \(UnidentifiedImageError\)$"
    ):
        load_images(root)
    (root / "test" / "a" / "0.png").unlink()
    with pytest.raises(
        ValueError,
        match=(
            r"test has no pictures; it must hold <class>/<picture> with one of \.bmp, \.jpeg, "
            r"\.jpg, \.png, \.webp$"
        ),
    ):
        load_images(root)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("missing", ["PIL", "PIL.Image"])
def test_a_missing_library_is_not_taken_for_a_broken_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    root = write_folders(
        tmp_path / "set", {"train/a/0.png": noise(4, 4), "test/a/0.png": noise(4, 4)}
    )
    for name in ("PIL", "PIL.Image"):
        monkeypatch.setitem(sys.modules, name, None) if name == missing else monkeypatch.delitem(
            sys.modules, name
        )
    with pytest.raises(
        ImportError, match=r'^reading images needs the package PIL: pip install "everloop\[data\]"$'
    ):
        load_images(root)


def imagenet(root: Path) -> dict[str, Any]:
    """Two classes, of 23 and 10 pictures, one of them grey."""
    counts = {"n01440764": 23, "n01443537": 10}
    pictures = {
        f"{name}/{i:03}.png": noise(8, 8, 3, seed=100 * k + i)
        for k, name in enumerate(counts)
        for i in range(counts[name])
    }
    pictures["n01443537/003.png"] = np.repeat(noise(8, 8)[..., None], 3, axis=2)
    write_folders(root, pictures | {"n01443537/003.png": pictures["n01443537/003.png"][..., 0]})
    return pictures


def test_every_tenth_picture_of_a_class_is_for_tests(tmp_path: Path) -> None:
    pictures = imagenet(tmp_path / "set")
    tenths = ["n01440764/009.png", "n01440764/019.png", "n01443537/009.png"]
    train, test = imagenet256(tmp_path / "set", size=(8, 8))
    np.testing.assert_array_equal(test.inputs, np.stack([pictures[name] for name in tenths]))
    np.testing.assert_array_equal(
        train.inputs, np.stack([pictures[name] for name in pictures if name not in tenths])
    )
    assert train.labels.tolist() == [0] * 21 + [1] * 9
    assert test.labels.tolist() == [0, 0, 1]
    assert train.classes == test.classes == ("n01440764", "n01443537")
    assert imagenet256(str(tmp_path / "set"))[0].inputs.shape == (30, 256, 256, 3)
    assert imagenet256(tmp_path / "set", size=(4, 6))[1].inputs.shape == (3, 4, 6, 3)


def test_without_a_folder_it_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imagenet(tmp_path / "set")
    asked = []

    def dataset_download(handle: str) -> str:
        asked.append(handle)
        return str(tmp_path / "set")

    monkeypatch.setitem(
        sys.modules, "kagglehub", SimpleNamespace(dataset_download=dataset_download)
    )
    downloaded, given = imagenet256(size=(8, 8)), imagenet256(tmp_path / "set", size=(8, 8))
    assert asked == ["dimensi0n/imagenet-256"]
    np.testing.assert_array_equal(downloaded[1].inputs, given[1].inputs)


def test_what_keeps_imagenet256_from_being_loaded_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(handle: str) -> str:
        raise OSError("403 Client Error.\n\nYou don't have permission")

    monkeypatch.setitem(sys.modules, "kagglehub", SimpleNamespace(dataset_download=refused))
    with pytest.raises(
        ValueError,
        match=(
            r"^dimensi0n/imagenet-256 can't be downloaded from Kaggle \(403 Client Error\); log in "
            r"with kagglehub\.login\(\), or give the folder of the data set$"
        ),
    ) as caught:
        imagenet256()
    assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    line = (
        r'^downloading ImageNet-256 needs the package kagglehub: pip install "everloop\[kaggle\]"$'
    )
    with pytest.raises(ImportError, match=line):
        imagenet256()
    with pytest.raises(ValueError, match=r"^size is \(8, 257\); it must be at most \(256, 256\)$"):
        imagenet256(tmp_path, size=(8, 257))
    with pytest.raises(
        ValueError, match=r"^path '.*nowhere' does not exist; give an existing file or folder$"
    ):
        imagenet256(tmp_path / "nowhere")
    write_folders(tmp_path / "few", {"a/0.png": noise(4, 4)})
    with pytest.raises(
        ValueError,
        match=(
            r"few has no class with 10 pictures; it must hold <class>/<picture>, of which every "
            r"tenth is a test example$"
        ),
    ):
        imagenet256(tmp_path / "few")
