"""`from_torch` takes data sets of PIL images, arrays or tensors, and refuses bad ones."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from data_sets import noise
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import Dataset, TensorDataset

from everloop.envs.data.torch_data import from_torch


class Pairs(Dataset[Any]):
    """A data set that, like many, never raises IndexError, so that iterating it never ends."""

    def __init__(
        self, pictures: Any, labels: Any, change: Callable[[Any], Any] = lambda picture: picture
    ) -> None:
        self.pictures, self.labels = pictures, labels
        self.change = change

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Any:
        return self.change(self.pictures[index % len(self)]), self.labels[index % len(self)]


KINDS: dict[str, Callable[[Any], Any]] = {
    "a PIL image": Image.fromarray,
    "an array, channels last": lambda pixels: pixels,
    "an array, channels first": lambda pixels: (
        np.moveaxis(pixels, -1, 0) if pixels.ndim == 3 else pixels
    ),
    "a tensor, channels first": lambda pixels: (
        torch.tensor(pixels).movedim(-1, 0) if pixels.ndim == 3 else torch.tensor(pixels)[None]
    ),
    "a tensor, channels last": lambda pixels: torch.tensor(pixels),
    "floats": lambda pixels: (
        torch.tensor(pixels).movedim(-1, 0) / 255
        if pixels.ndim == 3
        else torch.tensor(pixels) / 255
    ),
    "double floats": lambda pixels: pixels / 255,
}


@given(
    kind=st.sampled_from(sorted(KINDS)),
    sides=st.tuples(*[st.integers(5, 12)] * 2),
    colour=st.booleans(),
    examples=st.integers(1, 5),
)
@settings(deadline=None, max_examples=60)
def test_every_kind_of_picture_gives_the_same_examples(
    kind: str, sides: tuple[int, int], colour: bool, examples: int
) -> None:
    images = noise(examples, *sides, *([3] if colour else []))
    labels = np.arange(examples) * 10
    train, test = from_torch(
        Pairs(images, labels, KINDS[kind]), Pairs(images[:1], labels[:1], KINDS[kind])
    )
    np.testing.assert_array_equal(train.inputs, images.reshape(examples, *sides, -1))
    np.testing.assert_array_equal(test.inputs, train.inputs[:1])
    assert train.labels.tolist() == list(range(examples))
    assert train.classes == test.classes == tuple(str(10 * i) for i in range(examples))


def test_floats_are_rounded_to_the_nearest_of_256_levels() -> None:
    """Tested at all 256 levels and just less than half a level beside them."""
    levels = np.arange(256).reshape(1, 16, 16)
    beside = np.clip((levels + np.array([-0.49, 0.0, 0.49]).reshape(3, 1, 1)) / 255, 0, 1)
    train, _ = from_torch(Pairs(beside, [0, 0, 0]), Pairs(beside, [0, 0, 0]))
    assert (train.inputs[..., 0] == levels).all()


@pytest.mark.parametrize(
    "pictures", [lambda *shape: noise(*shape), lambda *shape: torch.tensor(noise(*shape))]
)
def test_unclear_channels_are_told_not_guessed(pictures: Any) -> None:
    data = [pictures(3, 8, 3)]
    pairs = Pairs(data, [0])
    expected = np.asarray(data[0])
    with pytest.raises(
        ValueError,
        match=(
            r"^picture 0 of train of shape \(3, 8, 3\) may be \(height, width, channels\) or "
            r'\(channels, height, width\); write channels="last" or channels="first"$'
        ),
    ):
        from_torch(pairs, pairs)
    last, _ = from_torch(pairs, pairs, channels="last")
    np.testing.assert_array_equal(last.inputs[0], expected)
    first, _ = from_torch(pairs, pairs, channels="first")
    np.testing.assert_array_equal(first.inputs[0], np.moveaxis(expected, 0, -1))


def test_transparency_is_dropped_from_grey_and_colour_pictures() -> None:
    grey, opaque = noise(6, 6), noise(6, 6, 3)
    transparent = Image.fromarray(np.dstack([opaque, noise(6, 6)]))
    train, test = from_torch(Pairs([transparent], [0]), Pairs([Image.fromarray(opaque)], [0]))
    np.testing.assert_array_equal(train.inputs[0], opaque)
    np.testing.assert_array_equal(test.inputs[0], opaque)
    shades = Image.fromarray(np.dstack([grey, grey]), "LA")
    np.testing.assert_array_equal(
        from_torch(Pairs([shades], [0]), Pairs([shades], [0]))[0].inputs[0, ..., 0], grey
    )


def test_given_classes_make_the_labels_their_indices() -> None:
    """Also when a split lacks a class. Without `classes`, labels may be strings."""
    images = torch.tensor(noise(3, 8, 8))
    train, test = from_torch(
        TensorDataset(images, torch.tensor([2, 0, 2])),
        Pairs(images, [1, 1, 0]),
        classes=["a", "b", "c"],
    )
    assert train.labels.tolist() == [2, 0, 2]
    assert test.labels.tolist() == [1, 1, 0]
    assert train.classes == ("a", "b", "c")
    train, _ = from_torch(Pairs(images, ["x", "y", "x"]), Pairs(images, ["y"] * 3))
    assert (train.labels.tolist(), train.classes) == ([0, 1, 0], ("x", "y"))


GOOD = Pairs(noise(2, 8, 8), [0, 1])


@pytest.mark.parametrize(
    ("train", "arguments", "line"),
    [
        (Pairs([], []), {}, "^train holds 0 examples; it needs at least one$"),
        (
            Pairs([noise(8, 8), noise(8, 9)], [0, 1]),
            {},
            (
                r"^picture 1 of train has shape \(8, 9, 1\); it must be \(8, 8, 1\), as the first "
                "one of train$"
            ),
        ),
        (
            Pairs(noise(2, 9, 9), [0, 1]),
            {},
            (
                r"^picture 0 of test has shape \(8, 8, 1\); it must be \(9, 9, 1\), as the first "
                "one of train$"
            ),
        ),
        (
            Pairs(noise(2, 8, 8, 5), [0, 1]),
            {},
            (
                r"^picture 0 of train of shape \(8, 8, 5\) may be \(height, width, channels\) or "
                r"\(channels, height, width\); write channels="
            ),
        ),
        (
            Pairs(noise(2, 8), [0, 1]),
            {},
            (
                r"^picture 0 of train has shape \(8,\); it must be \(H, W\), \(H, W, C\) or \(C, "
                r"H, W\)$"
            ),
        ),
        (
            Pairs(np.full((2, 8, 8), 1.1), [0, 1]),
            {},
            r"^picture 0 of train has values from 1\.1 to 1\.1; floats must be from 0 to 1$",
        ),
        (
            Pairs(np.full((2, 8, 8), np.nan), [0, 1]),
            {},
            r"^picture 0 of train has values from nan to nan",
        ),
        (
            Pairs(np.zeros((2, 8, 8), int), [0, 1]),
            {},
            "^picture 0 of train has dtype int64; it must be uint8, or floats from 0 to 1$",
        ),
        (
            Pairs([Image.new("I;16", (8, 8))], [0]),
            {},
            "^picture 0 of train has the mode I;16; convert it to L or RGB$",
        ),
        (
            Pairs(noise(2, 8, 8), torch.eye(2)),
            {},
            r"^label 0 of train has shape \(2,\); it must be one integer or string$",
        ),
        (
            Pairs(noise(2, 8, 8), [0.5, 1.0]),
            {},
            "^labels have dtype float64; they must be integers or strings$",
        ),
        (
            Pairs(noise(2, 8, 8), ["0", "1"]),
            {"classes": ["a", "b"]},
            r"^labels have dtype <U1 and int64; with classes they must be integers$",
        ),
        (
            Pairs(noise(2, 8, 8), [0, 0]),
            {},
            "^label 1 is in the test labels only; every test label must occur in training$",
        ),
        (
            Pairs(noise(2, 8, 8), [0, 2]),
            {"classes": ["a", "b"]},
            "^a label is 2; it must be from 0 to 1$",
        ),
    ],
)
def test_bad_pictures_or_labels_are_refused(
    train: Any, arguments: dict[str, Any], line: str
) -> None:
    with pytest.raises(ValueError, match=line) as caught:
        from_torch(train, GOOD, **arguments)
    assert "\n" not in str(caught.value)
