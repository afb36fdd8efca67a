"""Image data sets: their pictures, labels and columns, the cache, and what is refused."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_sets import class_label, mapped, noise, png, small_images, write_data_set
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from everloop.envs.data.images import load_images

LABELS = {
    "strings": st.sampled_from(["zebra", "ant", ""]),
    "integers": st.integers(-(2**40), 2**40),
    "class labels": st.integers(0, 2),
}
NAMES = ("one", "two", "three")


@given(
    kind=st.sampled_from(sorted(LABELS)),
    side=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    colour=st.booleans(),
    draw=st.data(),
)
@settings(deadline=None, max_examples=20)
def test_pictures_labels_and_columns_are_loaded_as_written(
    kind: str,
    side: tuple[int, int],
    colour: bool,
    draw: st.DataObject,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """The first time from files, the second time from the cache."""
    train_labels = draw.draw(st.lists(LABELS[kind], min_size=1, max_size=6))
    numbers = draw.draw(st.lists(st.integers(-9, 9), min_size=9, max_size=9))
    texts = draw.draw(st.lists(st.text("aß"), min_size=9, max_size=9))
    splits, images = {}, {}
    for split, labels, first in (("train", train_labels, 0), ("test", train_labels[::2], 6)):
        n = len(labels)
        images[split] = noise(n, *side, *([3] if colour else []), seed=n)
        splits[split] = {
            "image": [png(pixels) for pixels in images[split]],
            "label": labels,
            "number": numbers[first : first + n],
            "text": texts[first : first + n],
        }
    coded = kind == "class labels"
    features = {"label": class_label(*NAMES)} if coded else {}
    root = write_data_set(tmp_path_factory.mktemp("set"), splits, features)
    classes = NAMES if coded else tuple(str(label) for label in sorted(set(train_labels)))
    for _ in range(2):
        loaded = load_images(root, columns=["text", "number", "label"])
        for (split, columns), examples in zip(splits.items(), loaded, strict=True):
            names = [NAMES[label] if coded else str(label) for label in columns["label"]]
            expected = images[split].reshape(-1, *side, 3 if colour else 1)
            np.testing.assert_array_equal(examples.inputs, expected)
            assert examples.inputs.dtype == np.uint8
            assert examples.labels.dtype == np.int64
            assert examples.classes == classes
            assert [examples.classes[i] for i in examples.labels] == names
            assert examples.columns["label"].tolist() == names
            assert examples.columns["text"].tolist() == columns["text"]
            assert examples.columns["number"].tolist() == [str(n) for n in columns["number"]]


def test_the_cache_is_mapped_and_needs_no_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = small_images(tmp_path / "set")
    first = load_images(root, columns=["origin"])
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setitem(sys.modules, "PIL", None)
    for examples, again in zip(first, load_images(str(root), columns=["origin"]), strict=True):
        assert mapped(examples.inputs)
        assert mapped(again.inputs)
        np.testing.assert_array_equal(examples.inputs, again.inputs)
        np.testing.assert_array_equal(examples.labels, again.labels)
        np.testing.assert_array_equal(examples.columns["origin"], again.columns["origin"])
    with pytest.raises(
        ImportError,
        match=r'^reading a data set needs the package datasets: pip install "everloop\[data\]"$',
    ):
        load_images(root)


def test_other_contents_or_arguments_are_loaded_anew(tmp_path: Path) -> None:
    root = small_images(tmp_path / "set")
    before = load_images(root)[0].inputs.copy()
    assert load_images(root, size=(4, 8))[0].inputs.shape == (4, 4, 8, 1)
    assert load_images(root, test_split="train")[1].inputs.tolist() == before.tolist()
    assert load_images(root, label="origin")[0].classes == ("a", "b")
    other = noise(4, 8, 8, seed=1)
    small_images(tmp_path / "set", image=[png(pixels) for pixels in other])
    np.testing.assert_array_equal(load_images(root)[0].inputs[..., 0], other)


def test_the_cache_holds_only_the_arrays(tmp_path: Path, cache: Path) -> None:
    """The temporary files of the library are deleted."""
    load_images(small_images(tmp_path / "set"), columns=["origin"])
    (entry,) = cache.iterdir()
    arrays = {
        f"{split}%2F{name}.npy"
        for split in ("train", "test")
        for name in ("inputs", "labels", "columns%2Forigin")
    }
    assert {path.name for path in entry.iterdir()} == arrays | {"classes.npy", "sizes.json"}


@pytest.mark.parametrize(
    ("changes", "arguments", "line"),
    [
        (
            {},
            {"image": "picture"},
            "set has no column 'picture'; choose from image, label, origin$",
        ),
        ({}, {"label": "class"}, "set has no column 'class'; choose from image, label, origin$"),
        (
            {},
            {"columns": ["origin", "domain"]},
            "set has no column 'domain'; choose from image, label, origin$",
        ),
        (
            {},
            {"test_split": "validation"},
            "set has no split 'validation'; choose from train, test$",
        ),
        (
            {},
            {"image": "label"},
            r"^column 'label' of train holds ClassLabel\(.*\); it must hold images$",
        ),
        (
            {},
            {"label": "image"},
            "^column 'image' of train holds .*; it must hold class labels, integers or strings$",
        ),
        (
            {"label": [0.5, 1, 0, 1]},
            {},
            (
                "^column 'label' of train holds (double|float64); it must hold class labels, "
                "integers or strings$"
            ),
        ),
        (
            {"label": [True, False] * 2},
            {},
            "^column 'label' of train holds bool; it must hold class labels, integers or strings$",
        ),
        (
            {"label": [1, None, 0, 1]},
            {},
            "^'label' in row 1 of train is missing; give it a value, or leave the row out$",
        ),
        (
            {"origin": ["a", None, "b", "a"]},
            {"columns": ["origin"]},
            "^'origin' in row 1 of train is missing; give it a value, or leave the row out$",
        ),
        (
            {"origin": [0.5] * 4},
            {"columns": ["origin"]},
            (
                "^column 'origin' of train holds (double|float64); it must hold class labels, "
                "integers or strings$"
            ),
        ),
    ],
)
def test_a_bad_column_or_split_is_refused_and_nothing_is_cached(
    tmp_path: Path, cache: Path, changes: dict[str, Any], arguments: dict[str, Any], line: str
) -> None:
    root = small_images(tmp_path / "set", **changes)
    with pytest.raises(ValueError, match=line) as caught:
        load_images(root, **arguments)
    assert "\n" not in str(caught.value)
    assert not cache.exists() or list(cache.iterdir()) == []


def test_a_label_that_is_only_in_the_test_split_is_refused(tmp_path: Path) -> None:
    columns = {"image": [png(noise(8, 8))] * 2, "label": ["a", "b"]}
    write_data_set(tmp_path, {"train": columns, "test": columns | {"label": ["a", "c"]}}, {})
    with pytest.raises(
        ValueError,
        match=r"^label 'c' is in the test labels only; every test label must occur in training$",
    ):
        load_images(tmp_path)


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_outside_the_classes_is_refused_by_its_row(tmp_path: Path, label: int) -> None:
    """On the Hub, -1 stands for a hidden label."""
    columns = {"image": [png(noise(8, 8))] * 2, "label": [0, 1]}
    write_data_set(
        tmp_path,
        {"train": columns, "test": columns | {"label": [0, label]}},
        {"label": class_label("no", "yes")},
    )
    with pytest.raises(
        ValueError, match=rf"^'label' in row 1 of test is {label}; it must be from 0 to 1$"
    ):
        load_images(tmp_path)


@pytest.mark.parametrize("source", [Path("nowhere"), "./nowhere", "/no/where", "a/b/c"])
def test_a_source_must_be_a_folder_or_a_hub_id(
    source: str | Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError,
        match=(
            r"^source is '.*'; give an existing folder, or the id of a data set on the Hub, "
            r"owner/name$"
        ),
    ):
        load_images(source)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    with pytest.raises(
        ValueError,
        match=r"^data set .*set can't be loaded \(.*\); give a folder in the Hub's layout$",
    ) as caught:
        load_images(tmp_path / "set")
    assert "\n" not in str(caught.value)


def test_an_unreachable_hub_data_set_is_refused_by_name(tmp_path: Path) -> None:
    code = "from everloop.envs.data.images import load_images\nload_images('nobody/nothing')"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    line = done.stderr.strip().splitlines()[-1]
    assert line == (
        "everloop.envs.data.hub.Unreachable: data set nobody/nothing can't be reached, and is not "
        "stored here"
    )


def test_a_hub_data_set_is_decoded_once_per_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The paths of the library's files contain the revision."""
    import datasets

    asked = []

    def from_hub(load: Any) -> Any:
        def answer(name: str, cache_dir: str | None) -> Any:
            asked.append((load.__name__, name, cache_dir))
            return load(str(tmp_path / "set"), cache_dir=str(tmp_path / "hub"))

        return answer

    for load in (datasets.load_dataset, datasets.load_dataset_builder):
        monkeypatch.setattr(datasets, load.__name__, from_hub(load))
    small_images(tmp_path / "set")
    first = load_images("owner/name")[0]
    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", None)
        np.testing.assert_array_equal(load_images("owner/name")[0].inputs, first.inputs)
    other = noise(4, 8, 8, seed=1)
    small_images(tmp_path / "set", image=[png(pixels) for pixels in other])
    np.testing.assert_array_equal(load_images("owner/name")[0].inputs[..., 0], other)
    calls = [("load_dataset_builder", "owner/name", None), ("load_dataset", "owner/name", None)]
    assert asked == calls * 3
