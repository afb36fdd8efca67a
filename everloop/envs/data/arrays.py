"""Examples from arrays: one's own, and scikit-learn's digits."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from everloop.envs.data.examples import Array, Examples

Labels = npt.NDArray[np.int64]


def from_arrays(
    images: npt.ArrayLike,
    labels: npt.ArrayLike,
    test_images: npt.ArrayLike,
    test_labels: npt.ArrayLike,
) -> tuple[Examples, Examples]:
    """Train and test examples; the images are not copied.

    images, test_images: uint8, (N, H, W) or (N, H, W, C).
    labels, test_labels: integers or strings, (N,). The classes are those of the train labels,
    sorted. Raises ValueError for images and labels that do not fit together, and for a test label
    that no train example has.
    """
    train_x, train_y = _checked(images, labels, "")
    test_x, test_y = _checked(test_images, test_labels, "test_")
    if train_x.shape[1:] != test_x.shape[1:]:
        raise ValueError(
            f"test_images are {test_x.shape[1:]} each, allowed: {train_x.shape[1:]} as images"
        )
    coded, test_coded, classes = code_labels(train_y, test_y)
    return Examples(train_x, coded, classes), Examples(test_x, test_coded, classes)


def _checked(images: npt.ArrayLike, labels: npt.ArrayLike, prefix: str) -> tuple[Array, Array]:
    """Images (N, H, W, C) and labels (N,)."""
    try:
        x, y = np.asarray(images), np.asarray(labels)
    except ValueError:  # numpy's line speaks of its own affairs
        raise ValueError(
            f"{prefix}images or {prefix}labels differ in shape among themselves, allowed: one "
            "shape for all"
        ) from None
    if x.dtype != np.uint8 or x.ndim not in (3, 4):
        floats = (
            "; if they are floats from 0 to 1, multiply by 255 and .astype(np.uint8)"
            if x.dtype.kind == "f"
            else ""
        )
        raise ValueError(
            f"{prefix}images have dtype {x.dtype} and shape {x.shape}, allowed: uint8, (N, H, W) "
            f"or (N, H, W, C){floats}"
        )
    if x.ndim == 4 and x.shape[1] in (1, 3, 4) and x.shape[3] > 4:
        raise ValueError(
            f"{prefix}images have shape {x.shape}, which looks like (N, C, H, W); give "
            ".transpose(0, 2, 3, 1) of them"
        )
    if y.shape != x.shape[:1]:
        raise ValueError(
            f"{prefix}images hold {len(x)} examples and {prefix}labels have shape {y.shape}, "
            f"allowed: ({len(x)},)"
        )
    if not len(x):
        raise ValueError(f"{prefix}images hold 0 examples, allowed: 1 or more")
    return x[..., None] if x.ndim == 3 else x, y


def code_labels(labels: Array, test_labels: Array) -> tuple[Labels, Labels, tuple[str, ...]]:
    """Integers or strings (N,) become indices into the sorted distinct train labels; the latter's
    names come last.

    Raises ValueError for labels of another kind, and for a test label that is not among the train
    labels.
    """
    train, test = _plain(labels, "labels"), _plain(test_labels, "test_labels")
    if (train.dtype.kind == "U") != (test.dtype.kind == "U"):
        raise ValueError(
            f"labels have dtype {train.dtype} and test_labels {test.dtype}, allowed: the same kind"
        )
    distinct, coded = np.unique(train, return_inverse=True)
    stray = np.setdiff1d(test, distinct)
    if stray.size:
        raise ValueError(
            f"label {stray.tolist()[0]!r} is in the test labels only, allowed: the classes of the "
            "train labels"
        )
    return (
        coded.astype(np.int64),
        np.searchsorted(distinct, test).astype(np.int64),
        tuple(map(str, distinct.tolist())),
    )


def _plain(labels: Array, name: str) -> Array:
    """Labels as an array of integers or of strings, which may have come as an array of objects."""
    plain = labels if labels.dtype.kind in "iu" else np.asarray(labels.tolist())
    if plain.dtype.kind not in "iuU":
        raise ValueError(f"{name} have dtype {labels.dtype}, allowed: integers or strings")
    return plain


@lru_cache(maxsize=1)
def digits() -> tuple[Examples, Examples]:
    """scikit-learn's digits: train images (1442, 8, 8, 1), test images (355, 8, 8, 1).

    Every fifth example of each class is a test example. Grey levels 0..16 become 0..240.
    Source: UCI ML hand-written digits (Alpaydin & Kaynak, 1998), as shipped with scikit-learn.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = (bunch.images * 15).astype(np.uint8)
    labels: Any = bunch.target
    rank = np.empty_like(labels)
    for c in np.unique(labels):
        rank[labels == c] = np.arange(int((labels == c).sum()))
    test = rank % 5 == 4
    return from_arrays(images[~test], labels[~test], images[test], labels[test])
