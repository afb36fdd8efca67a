"""Examples from arrays, and scikit-learn's digits."""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt

from everloop.envs.data.examples import Array, Examples
from everloop.envs.data.layout import Channels, channels_last, check_channels

Labels = npt.NDArray[np.int64]


def from_arrays(
    images: npt.ArrayLike,
    labels: npt.ArrayLike,
    test_images: npt.ArrayLike,
    test_labels: npt.ArrayLike,
    channels: Channels | None = None,
) -> tuple[Examples, Examples]:
    """Return train and test examples made of arrays. The images are not copied.

    Args:
        images: Train images, uint8 (N, H, W), (N, H, W, C) or (N, C, H, W).
        labels: Train labels, integers or strings (N,). The classes are these labels, sorted.
        test_images: Test images of the same shape each, with their own N.
        test_labels: Test labels of the same kind.
        channels: Where C is, "last" or "first". None is for images that show it: exactly one of
            the two axes where C may be has 4 entries or fewer.

    Returns:
        (train, test), images (N, H, W, C).

    Raises:
        ValueError: If images and labels do not fit together, if `channels` is None and the shape
            leaves it open, or if a test label does not occur in training.
    """
    check_channels(channels)
    train_x, train_y = _checked(images, labels, "", channels)
    test_x, test_y = _checked(test_images, test_labels, "test_", channels)
    if train_x.shape[1:] != test_x.shape[1:]:
        raise ValueError(
            f"a test image has shape {test_x.shape[1:]}; it must be {train_x.shape[1:]}, as in "
            "training"
        )
    coded, test_coded, classes = code_labels(train_y, test_y)
    return Examples(train_x, coded, classes), Examples(test_x, test_coded, classes)


def _checked(
    images: npt.ArrayLike, labels: npt.ArrayLike, prefix: str, channels: Channels | None
) -> tuple[Array, Array]:
    """Return images (N, H, W, C) and labels (N,)."""
    try:
        x, y = np.asarray(images), np.asarray(labels)
    except ValueError:  # numpy's own message does not help the user
        raise ValueError(
            f"{prefix}images or {prefix}labels differ in shape among themselves; all must have "
            "the same shape"
        ) from None
    if x.dtype != np.uint8 or x.ndim not in (3, 4):
        hint = ""
        if x.dtype.kind == "f":
            hint = "; multiply floats from 0 to 1 by 255 and use .astype(np.uint8)"
        raise ValueError(
            f"{prefix}images have dtype {x.dtype} and shape {x.shape}; they must be uint8 of "
            f"shape (N, H, W), (N, H, W, C) or (N, C, H, W){hint}"
        )
    if y.shape != x.shape[:1]:
        raise ValueError(
            f"{prefix}labels have shape {y.shape}; for {len(x)} {prefix}images it must be "
            f"({len(x)},)"
        )
    if not len(x):
        raise ValueError(f"{prefix}images hold 0 examples; give at least one")
    if x.ndim == 3:
        return x[..., None], y
    return channels_last(x, channels, f"{prefix}images"), y


def code_labels(labels: Array, test_labels: Array) -> tuple[Labels, Labels, tuple[str, ...]]:
    """Turn labels into indices into the sorted distinct train labels.

    Args:
        labels: Train labels, integers or strings (N,).
        test_labels: Test labels of the same kind, with their own N.

    Returns:
        The train indices (N,), the test indices (N,), and the names of the classes.

    Raises:
        ValueError: If labels are of another kind, or if a test label is not among the train
            labels.
    """
    train, test = _plain(labels, "labels"), _plain(test_labels, "test_labels")
    if (train.dtype.kind == "U") != (test.dtype.kind == "U"):
        raise ValueError(
            f"labels have dtype {train.dtype} and test_labels {test.dtype}; both must be integers "
            "or both strings"
        )
    distinct, coded = np.unique(train, return_inverse=True)
    stray = np.setdiff1d(test, distinct)
    if stray.size:
        raise ValueError(
            f"label {stray.tolist()[0]!r} is in the test labels only; every test label must occur "
            "in training"
        )
    return (
        coded.astype(np.int64),
        np.searchsorted(distinct, test).astype(np.int64),
        tuple(map(str, distinct.tolist())),
    )


def _plain(labels: Array, name: str) -> Array:
    """Return labels, which may be an array of objects, as an array of integers or strings."""
    plain = labels if labels.dtype.kind in "iu" else np.asarray(labels.tolist())
    if plain.dtype.kind not in "iuU":
        raise ValueError(f"{name} have dtype {labels.dtype}; they must be integers or strings")
    return plain


@lru_cache(maxsize=1)
def digits() -> tuple[Examples, Examples]:
    """Return scikit-learn's digits: 1442 train and 355 test images, uint8 (N, 8, 8, 1).

    Every fifth example of each class is a test example. Grey levels 0..16 become 0..240.
    Source: UCI ML hand-written digits (Alpaydin & Kaynak, 1998), as shipped with scikit-learn.
    """
    package = find_spec("sklearn")
    assert package is not None
    assert package.origin is not None
    # Importing scikit-learn to read this file would take longer than a short run.
    table = np.loadtxt(Path(package.origin).parent / "datasets/data/digits.csv.gz", delimiter=",")
    images = (table[:, :-1].reshape(-1, 8, 8) * 15).astype(np.uint8)
    labels = table[:, -1].astype(np.int64)
    rank = np.empty_like(labels)
    for c in np.unique(labels):
        rank[labels == c] = np.arange(int((labels == c).sum()))
    test = rank % 5 == 4
    return from_arrays(images[~test], labels[~test], images[test], labels[test])
