"""`from_arrays` keeps arrays as they are and refuses bad ones; `digits` splits scikit-learn's."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from data_sets import noise
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from everloop.envs.data.arrays import digits, from_arrays

LABELS = np.arange(12) % 4


@given(
    labels=st.one_of(
        *[
            st.lists(of, min_size=1, max_size=20)
            for of in (st.integers(-(2**63), 2**63 - 1), st.text("ab", max_size=2))
        ]
    ),
    as_array=st.booleans(),
    draw=st.data(),
)
@settings(deadline=None)
def test_labels_become_positions_among_the_sorted_train_labels(
    labels: list[Any], as_array: bool, draw: st.DataObject
) -> None:
    """For any integers or strings, in lists or arrays; the test split may lack some."""
    test_labels = draw.draw(st.lists(st.sampled_from(labels), min_size=1, max_size=5))
    pairs = [(noise(len(y), 2, 2), np.array(y) if as_array else y) for y in (labels, test_labels)]
    for examples, given_labels in zip(
        from_arrays(*pairs[0], *pairs[1]), (labels, test_labels), strict=True
    ):
        assert examples.classes == tuple(str(label) for label in sorted(set(labels)))
        assert [examples.classes[i] for i in examples.labels] == [
            str(label) for label in given_labels
        ]
        assert examples.labels.dtype == np.int64


def test_object_arrays_of_strings_are_accepted() -> None:
    labels = np.array(["b", "a", "b"], object)  # as in a pandas data frame
    train, _ = from_arrays(noise(3, 2, 2), labels, noise(1, 2, 2), ["a"])
    assert train.classes == ("a", "b")
    assert train.labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize("channels", [None, 1, 3])
def test_images_are_the_given_ones_and_not_copied(channels: int | None) -> None:
    """(N, H, W) or (N, H, W, C), with sides of any length. Lists are accepted too."""
    images = noise(12, 9, 14, *([] if channels is None else [channels]))
    train, test = from_arrays(images, LABELS, list(images[:4]), LABELS[:4].tolist())
    assert train.inputs.shape == (12, 9, 14, channels or 1)
    assert np.shares_memory(train.inputs, images)
    np.testing.assert_array_equal(train.inputs.reshape(images.shape), images)
    np.testing.assert_array_equal(test.inputs, train.inputs[:4])


@pytest.mark.parametrize(
    ("shape", "channels"),
    [
        ((12, 3, 8, 8), None),
        ((12, 1, 8, 8), None),
        ((12, 3, 8, 3), "first"),
        ((12, 4, 4, 4), "first"),
        ((12, 13, 8, 8), "first"),
        ((12, 8, 8, 3), None),
        ((12, 3, 8, 3), "last"),
        ((12, 3, 8, 8), "last"),
        ((12, 8, 8, 13), "last"),
    ],
)
def test_channels_are_where_the_shape_or_the_user_says(
    shape: tuple[int, ...], channels: Any
) -> None:
    """Each pixel (n, h, w) keeps its value of each channel c."""
    images = noise(*shape)
    train, _ = from_arrays(images, LABELS, images, LABELS, channels=channels)
    first = channels == "first" or (channels is None and shape[1] < 5)
    for n, h, w, c in [(0, 0, 0, 0), (5, 2, 1, -1), (11, -1, -1, 0)]:
        expected = images[n, c, h, w] if first else images[n, h, w, c]
        assert train.inputs[n, h, w, c] == expected


def arrays(**changes: Any) -> dict[str, Any]:
    images = np.zeros((12, 8, 8), np.uint8)
    return {
        "images": images,
        "labels": LABELS,
        "test_images": images,
        "test_labels": LABELS,
    } | changes


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"labels": LABELS[:11]}, r"^labels have shape \(11,\); for 12 images it must be \(12,\)$"),
        (
            {"test_labels": LABELS[:5]},
            r"^test_labels have shape \(5,\); for 12 test_images it must be \(12,\)$",
        ),
        (
            {"labels": LABELS[:, None]},
            r"^labels have shape \(12, 1\); for 12 images it must be \(12,\)$",
        ),
        (
            {"images": np.zeros((12, 8, 8))},
            (
                r"^images have dtype float64 and shape \(12, 8, 8\); they must be uint8 of shape "
                r"\(N, H, W\), \(N, H, W, C\) or \(N, C, H, W\); multiply floats from 0 to 1 by "
                r"255 and use \.astype\(np\.uint8\)$"
            ),
        ),
        (
            {"test_images": np.zeros((12, 3, 8, 4), np.uint8)},
            (
                r"^test_images of shape \(12, 3, 8, 4\) may be \(height, width, channels\) or "
                r'\(channels, height, width\); write channels="last" or channels="first"$'
            ),
        ),
        (
            {"images": np.zeros((12, 13, 8, 8), np.uint8)},
            r"^images of shape \(12, 13, 8, 8\) may be .*; write channels=",
        ),
        ({"channels": "middle"}, r"""^channels is 'middle'; write "first" or "last"$"""),
        ({"test_images": np.zeros((12, 8, 8), np.int64)}, r"^test_images have dtype int64"),
        (
            {"images": np.zeros((12, 64), np.uint8)},
            (
                r"^images have dtype uint8 and shape \(12, 64\); they must be uint8 of shape \(N, "
                r"H, W\), \(N, H, W, C\) or \(N, C, H, W\)$"
            ),
        ),
        (
            {"images": [noise(8, 8), noise(8, 9)]},
            "^images or labels differ in shape among themselves; all must have the same shape$",
        ),
        (
            {"labels": LABELS.astype(float)},
            "^labels have dtype float64; they must be integers or strings$",
        ),
        ({"labels": LABELS > 1}, "^labels have dtype bool; they must be integers or strings$"),
        (
            {"test_labels": [None, *LABELS[1:]]},
            "^test_labels have dtype object; they must be integers or strings$",
        ),
        (
            {"test_labels": LABELS.astype(str)},
            "^labels have dtype int64 and test_labels <U1; both must be integers or both strings$",
        ),
        (
            {"test_labels": LABELS + 5},
            "^label 5 is in the test labels only; every test label must occur in training$",
        ),
        (
            {"test_images": np.zeros((12, 9, 9), np.uint8)},
            r"^a test image has shape \(9, 9, 1\); it must be \(8, 8, 1\), as in training$",
        ),
        (
            {"test_images": np.zeros((12, 8, 8, 3), np.uint8)},
            r"^a test image has shape \(8, 8, 3\); it must be \(8, 8, 1\), as in training$",
        ),
        (
            {"images": np.zeros((0, 8, 8), np.uint8), "labels": LABELS[:0]},
            "^images hold 0 examples; give at least one$",
        ),
    ],
)
def test_bad_images_or_labels_are_refused(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=line) as caught:
        from_arrays(**arrays(**changes))
    assert "\n" not in str(caught.value)


def test_digits_are_split_by_class_without_overlap() -> None:
    """The two splits together are scikit-learn's digits. A fifth of each class is for tests."""
    train, test = digits()
    assert train.inputs.shape == (1442, 8, 8, 1)
    assert test.inputs.shape == (355, 8, 8, 1)
    assert train.classes == test.classes == tuple("0123456789")
    bunch = load_digits()
    source = Counter(
        (image.astype(int).tobytes(), int(label))
        for image, label in zip(bunch.images, bunch.target, strict=True)
    )
    split = Counter(
        ((image[..., 0] // 15).astype(int).tobytes(), int(label))
        for examples in (train, test)
        for image, label in zip(examples.inputs, examples.labels, strict=True)
    )
    assert split == source
    assert not {image.tobytes() for image in train.inputs} & {
        image.tobytes() for image in test.inputs
    }
    for c in range(10):
        assert (test.labels == c).sum() == (bunch.target == c).sum() // 5
    assert digits() is digits(), "they must be made only once"
