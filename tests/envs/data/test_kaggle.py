"""ImageNet-256: how its folder is split, its download from Kaggle, and what is refused."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from data_sets import noise, write_folders

from everloop.envs.data.kaggle import imagenet256


def imagenet(root: Path) -> dict[str, Any]:
    """Write two classes, of 23 and 10 pictures, one of them grey; return their pixels by path."""
    counts = {"n01440764": 23, "n01443537": 10}
    pictures = {
        f"{name}/{i:03}.png": noise(8, 8, 3, seed=100 * k + i)
        for k, name in enumerate(counts)
        for i in range(counts[name])
    }
    pictures["n01443537/003.png"] = np.repeat(noise(8, 8)[..., None], 3, axis=2)
    write_folders(root, pictures | {"n01443537/003.png": pictures["n01443537/003.png"][..., 0]})
    return pictures


def test_every_tenth_picture_of_a_class_is_a_test_example(tmp_path: Path) -> None:
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


def test_without_a_folder_the_data_set_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imagenet(tmp_path / "set")
    asked = []

    def dataset_download(handle: str) -> str:
        asked.append(handle)
        return str(tmp_path / "set")

    monkeypatch.setitem(
        sys.modules, "kagglehub", SimpleNamespace(dataset_download=dataset_download)
    )
    downloaded = imagenet256(size=(8, 8))
    given = imagenet256(tmp_path / "set", size=(8, 8))
    assert asked == ["dimensi0n/imagenet-256"]
    np.testing.assert_array_equal(downloaded[1].inputs, given[1].inputs)


def test_a_failed_download_says_how_to_log_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def dataset_download(handle: str) -> str:
        raise OSError("403 Client Error.\n\nYou don't have permission")

    monkeypatch.setitem(
        sys.modules, "kagglehub", SimpleNamespace(dataset_download=dataset_download)
    )
    with pytest.raises(
        ValueError,
        match=(
            r"^dimensi0n/imagenet-256 can't be downloaded from Kaggle \(403 Client Error\); log in "
            r"with kagglehub\.login\(\), or give the folder of the data set$"
        ),
    ) as caught:
        imagenet256()
    assert "\n" not in str(caught.value)


def test_a_download_without_kagglehub_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    line = (
        r'^downloading ImageNet-256 needs the package kagglehub: pip install "everloop\[kaggle\]"$'
    )
    with pytest.raises(ImportError, match=line):
        imagenet256()


def test_a_size_above_256_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^size is \(8, 257\); it must be at most \(256, 256\)$"):
        imagenet256(tmp_path, size=(8, 257))


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"^path '.*nowhere' does not exist; give an existing file or folder$"
    ):
        imagenet256(tmp_path / "nowhere")


def test_a_folder_without_a_class_of_10_pictures_is_refused(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "few", {"a/0.png": noise(4, 4)})
    with pytest.raises(
        ValueError,
        match=(
            r"few has no class with 10 pictures; it must hold <class>/<picture>, of which every "
            r"tenth is a test example$"
        ),
    ):
        imagenet256(root)
