"""Pictures come out of a data set as they went in, with labels and columns; from the second time on
out of the cache.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_sets import class_label, mapped, noise, png, write_data_set
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from everloop.envs.data.images import load_images

labels_of = {
    "names": st.sampled_from(["zebra", "ant", ""]),
    "numbers": st.integers(-(2**40), 2**40),
    "classes": st.integers(0, 2),
}


@given(
    kind=st.sampled_from(sorted(labels_of)),
    side=st.tuples(*[st.integers(1, 9)] * 2),
    depth=st.sampled_from([None, 3]),
    draw=st.data(),
)
@settings(deadline=None, max_examples=20)
def test_what_was_encoded_is_decoded(
    kind: str,
    side: tuple[int, int],
    depth: int | None,
    draw: st.DataObject,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Every pixel, label and column, in order, from files as from the cache."""
    labels = draw.draw(st.lists(labels_of[kind], min_size=1, max_size=6))
    splits, images = {}, {}
    for split, values in (("train", labels), ("test", labels[::2])):
        images[split] = noise(
            len(values), *side, *([] if depth is None else [depth]), seed=len(labels)
        )
        pictures = [png(pixels) for pixels in images[split]]
        numbers, texts = draw.draw(
            st.tuples(
                *[
                    st.lists(of, min_size=6, max_size=6)
                    for of in (st.integers(-9, 9), st.text("aß"))
                ]
            )
        )
        splits[split] = {
            "image": pictures,
            "label": values,
            "number": numbers[: len(values)],
            "text": texts[: len(values)],
        }
    names = ("one", "two", "three")
    root = write_data_set(
        tmp_path_factory.mktemp("set"),
        splits,
        {"label": class_label(*names)} if kind == "classes" else {},
    )
    for _ in range(2):
        loaded = load_images(root, columns=["text", "number", "label"])
        for split, examples in zip(("train", "test"), loaded, strict=True):
            given_labels = splits[split]["label"]
            np.testing.assert_array_equal(
                examples.inputs, images[split].reshape(-1, *side, depth or 1)
            )
            assert examples.inputs.dtype == np.uint8
            assert examples.labels.dtype == np.int64
            expected = (
                [names[i] for i in given_labels]
                if kind == "classes"
                else [str(label) for label in given_labels]
            )
            assert (
                [examples.classes[i] for i in examples.labels]
                == expected
                == examples.columns["label"].tolist()
            )
            assert examples.classes == (
                names if kind == "classes" else tuple(str(label) for label in sorted(set(labels)))
            )
            assert examples.columns["text"].tolist() == splits[split]["text"]
            assert examples.columns["number"].tolist() == [
                str(number) for number in splits[split]["number"]
            ]


def small(root: Path, **changes: Any) -> Path:
    """Four examples a split, of two classes, but for `changes` of the columns."""
    columns = {
        "image": [png(pixels) for pixels in noise(4, 8, 8)],
        "label": [0, 1, 0, 1],
        "origin": list("abba"),
    } | changes
    features = {"label": class_label("no", "yes")} if "label" not in changes else {}
    return write_data_set(root, {"train": columns, "test": columns}, features)


def test_the_cache_needs_no_reader_and_holds_no_copy_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = small(tmp_path / "set")
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


def test_other_contents_and_other_arguments_are_another_entry(tmp_path: Path) -> None:
    root = small(tmp_path / "set")
    before = load_images(root)[0].inputs.copy()
    assert load_images(root, size=(4, 8))[0].inputs.shape == (4, 4, 8, 1)
    assert load_images(root, test_split="train")[1].inputs.tolist() == before.tolist()
    assert load_images(root, label="origin")[0].classes == ("a", "b")
    other = noise(4, 8, 8, seed=1)
    small(tmp_path / "set", image=[png(pixels) for pixels in other])
    np.testing.assert_array_equal(load_images(root)[0].inputs[..., 0], other)


def test_what_is_kept_is_the_arrays_alone(tmp_path: Path, cache: Path) -> None:
    """Whatever the reader wrote on its way is gone."""
    load_images(small(tmp_path / "set"), columns=["origin"])
    (entry,) = cache.iterdir()
    arrays = {
        f"{split}%2F{name}.npy"
        for split in ("train", "test")
        for name in ("inputs", "labels", "columns%2Forigin")
    }
    assert {path.name for path in entry.iterdir()} == arrays | {"classes.npy", "sizes.json"}


def test_more_pictures_than_are_held_at_a_time_keep_their_order(tmp_path: Path) -> None:
    images = noise(600, 4, 4)
    images[:, 0, 0], images[:, 0, 1] = np.arange(600) % 256, np.arange(600) // 256
    columns = {"image": [png(pixels) for pixels in images], "label": [0] * 600}
    train, test = load_images(write_data_set(tmp_path, {"train": columns, "test": columns}, {}))
    np.testing.assert_array_equal(train.inputs[..., 0], images)
    np.testing.assert_array_equal(test.inputs[..., 0], images)


@pytest.mark.parametrize("coloured", [("train", 3), ("test", 0)])
def test_one_coloured_picture_gives_all_three_channels(
    tmp_path: Path, coloured: tuple[str, int]
) -> None:
    """A grey one then has the same value in each."""
    grey, colour = noise(4, 8, 8), noise(8, 8, 3)
    splits = {
        split: {"image": [png(pixels) for pixels in grey], "label": [0] * 4}
        for split in ("train", "test")
    }
    splits[coloured[0]]["image"][coloured[1]] = png(colour)
    for split, examples in zip(
        splits, load_images(write_data_set(tmp_path, splits, {})), strict=True
    ):
        for i in range(4):
            expected = (
                colour if (split, i) == coloured else np.repeat(grey[i][..., None], 3, axis=2)
            )
            np.testing.assert_array_equal(examples.inputs[i], expected)


@pytest.mark.parametrize(("mode", "channels"), [("1", 1), ("LA", 1), ("RGBA", 3)])
def test_black_and_white_is_grey_and_transparency_is_dropped(
    tmp_path: Path, mode: str, channels: int
) -> None:
    shades = (
        np.where(noise(6, 6, 1) > 127, 255, 0).astype(np.uint8)
        if mode == "1"
        else noise(6, 6, channels)
    )
    opaque = Image.fromarray(shades.squeeze())
    picture = opaque.convert(mode)
    if mode != "1":
        picture.putalpha(Image.fromarray(noise(6, 6, seed=1)))
    root = tmp_path / "set"
    for split in ("train", "test"):
        (root / split / "a").mkdir(parents=True)
        picture.save(root / split / "a" / "0.png")
    np.testing.assert_array_equal(load_images(root)[0].inputs[0], shades)


def test_a_palette_is_looked_up(tmp_path: Path) -> None:
    """With a transparent colour too, of which Pillow has something to say."""
    picture = Image.fromarray(np.arange(36, dtype=np.uint8).reshape(6, 6), "L").convert("P")
    colours = noise(256, 3)
    picture.putpalette(colours.tobytes())
    for split in ("train", "test"):
        (tmp_path / "set" / split / "a").mkdir(parents=True)
        picture.save(tmp_path / "set" / split / "a" / "0.png", transparency=bytes(range(256)))
    np.testing.assert_array_equal(
        load_images(tmp_path / "set")[0].inputs[0], colours[:36].reshape(6, 6, 3)
    )


@given(
    height=st.integers(1, 8),
    width=st.integers(1, 8),
    margin=st.integers(0, 4),
    upright=st.booleans(),
)
@settings(deadline=None, max_examples=15)
def test_what_juts_out_is_cut_off_on_both_sides_alike(
    height: int, width: int, margin: int, upright: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Where nothing has to be scaled the middle is left as it is."""
    image = noise(height + 2 * margin * upright, width + 2 * margin * (not upright), 3)
    middle = image[margin : margin + height] if upright else image[:, margin : margin + width]
    columns = {"image": [png(image), png(middle)], "label": [0, 0]}
    root = write_data_set(tmp_path_factory.mktemp("set"), {"train": columns, "test": columns}, {})
    train, _ = load_images(root, size=(height, width))
    np.testing.assert_array_equal(train.inputs, np.stack([middle, middle]))


@pytest.mark.parametrize("shape", [(32, 20), (20, 32), (40, 90), (64, 64), (7, 5)])
def test_every_picture_is_scaled_until_it_covers_the_size(
    tmp_path: Path, shape: tuple[int, int]
) -> None:
    """Halves stay halves, up to the few pixels of the edge: nothing is squeezed, and nothing left
    blank.
    """
    image = np.zeros((*shape, 3), np.uint8)
    image[:, : shape[1] // 2 + shape[1] % 2] = (250, 10, 90)
    image[:, shape[1] // 2 :] = (10, 90, 250)
    columns = {"image": [png(image)], "label": [0]}
    train, _ = load_images(
        write_data_set(tmp_path, {"train": columns, "test": columns}, {}), size=(16, 12)
    )
    assert train.inputs.shape == (1, 16, 12, 3)
    assert (train.inputs[0, :, 0] == (250, 10, 90)).all()
    assert (train.inputs[0, :, -1] == (10, 90, 250)).all()


HALF = [png(pixels) for pixels in noise(4, 8, 8)]
HALF[2] = HALF[2][: len(HALF[2]) // 2]
NONE = [png(pixels) for pixels in noise(4, 8, 8)]
NONE[1] = None  # type: ignore[call-overload]
DEEP = [png(noise(8, 8).astype(np.uint16) * 256) for _ in range(4)]
UNEVEN = [png(noise(8, 8)), png(noise(8, 8)), png(noise(9, 8)), png(noise(7, 8))]


@pytest.mark.parametrize(
    ("changes", "arguments", "line"),
    [
        ({"image": HALF}, {}, r"^row 2 of train can't be read as an image \(\w+\)$"),
        (
            {"image": [b"GIF"] * 4},
            {},
            r"^row 0 of train can't be read as an image \(UnidentifiedImageError\)$",
        ),
        ({"image": NONE}, {}, r"^row 1 of train can't be read as an image"),
        (
            {"image": DEEP},
            {},
            "^row 0 of train has the mode I;16; it must have 8 bits per channel$",
        ),
        (
            {"image": UNEVEN},
            {},
            (
                r"^row 2 of train has size \(9, 8\) and the first picture \(8, 8\); give a size to "
                "scale them to$"
            ),
        ),
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
            "^'label' in row 1 of train is None; it must have a value$",
        ),
        (
            {"origin": ["a", None, "b", "a"]},
            {"columns": ["origin"]},
            "^'origin' in row 1 of train is None; it must have a value$",
        ),
        (
            {"origin": [0.5] * 4},
            {"columns": ["origin"]},
            (
                "^column 'origin' of train holds (double|float64); it must hold class labels, "
                "integers or strings$"
            ),
        ),
        ({}, {"size": (0, 8)}, r"^size is \(0, 8\); it must be \(height, width\), each 1 or more$"),
        ({}, {"size": (8,)}, r"^size is \(8,\); it must be \(height, width\), each 1 or more$"),
        (
            {},
            {"size": (8, 8.0)},
            r"^size is \(8, 8\.0\); it must be \(height, width\), each 1 or more$",
        ),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_kept(
    tmp_path: Path, cache: Path, changes: dict[str, Any], arguments: dict[str, Any], line: str
) -> None:
    root = small(tmp_path / "set", **changes)
    with pytest.raises(ValueError, match=line) as caught:
        load_images(root, **arguments)
    assert "\n" not in str(caught.value)
    assert not cache.exists() or list(cache.iterdir()) == []


def test_a_label_of_the_test_split_alone_is_refused(tmp_path: Path) -> None:
    columns = {"image": [png(noise(8, 8))] * 2, "label": ["a", "b"]}
    write_data_set(tmp_path, {"train": columns, "test": columns | {"label": ["a", "c"]}}, {})
    with pytest.raises(
        ValueError,
        match=r"^label 'c' is in the test labels only; every test label must occur in training$",
    ):
        load_images(tmp_path)


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_that_is_no_class_is_named_by_its_row(tmp_path: Path, label: int) -> None:
    """The Hub's hidden labels are -1."""
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
def test_what_is_neither_a_folder_nor_a_name_of_the_hub_is_refused(
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


def test_an_empty_folder_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    with pytest.raises(
        ValueError,
        match=r"^data set .*set can't be loaded \(.*\); give a folder in the Hub's layout$",
    ) as caught:
        load_images(tmp_path / "set")
    assert "\n" not in str(caught.value)


def test_a_data_set_of_the_hub_that_cant_be_reached_is_named_in_one_line(tmp_path: Path) -> None:
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


def test_a_data_set_of_the_hub_is_kept_by_its_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library names its files by that: the same files are not decoded again, others are."""
    import datasets

    load, asked = datasets.load_dataset, []

    def from_hub(name: str, cache_dir: str | None) -> Any:
        asked.append((name, cache_dir))
        return load(str(tmp_path / "set"), cache_dir=str(tmp_path / "hub"))

    monkeypatch.setattr(datasets, "load_dataset", from_hub)
    small(tmp_path / "set")
    first = load_images("owner/name")[0]
    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", None)
        np.testing.assert_array_equal(load_images("owner/name")[0].inputs, first.inputs)
    other = noise(4, 8, 8, seed=1)
    small(tmp_path / "set", image=[png(pixels) for pixels in other])
    np.testing.assert_array_equal(load_images("owner/name")[0].inputs[..., 0], other)
    assert asked == [("owner/name", None)] * 3
