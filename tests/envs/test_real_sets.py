"""Real data sets have their published sizes, classes and statistics; needs EVERLOOP_DATA."""

import os
from pathlib import Path

import numpy as np
import pytest

from everloop.envs.data import load_images, load_ner, load_text

ROOT = Path(os.environ.get("EVERLOOP_DATA", ""))


def folder_of(name: str) -> Path:
    """Return the folder of a data set; skip the test if there is none."""
    if "EVERLOOP_DATA" not in os.environ or not (ROOT / name).is_dir():
        pytest.skip(f"EVERLOOP_DATA does not name a folder with {name}")
    return ROOT / name


def test_mnist_has_its_published_size_and_class_counts() -> None:
    """60,000 and 10,000 digits (LeCun et al. 1998)."""
    train, test = load_images(folder_of("mnist"))
    assert (train.inputs.shape, test.inputs.shape) == ((60_000, 28, 28, 1), (10_000, 28, 28, 1))
    train_counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    test_counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert np.bincount(train.labels).tolist() == train_counts
    assert np.bincount(test.labels).tolist() == test_counts
    assert train.inputs.mean() / 255 == pytest.approx(0.1307, abs=1e-4)


def test_cifar100_has_its_published_size_and_channel_statistics() -> None:
    """500 and 100 images of each of 100 classes (Krizhevsky 2009)."""
    train, test = load_images(folder_of("cifar100"), columns=["coarse_label"])
    assert (train.inputs.shape, test.inputs.shape) == ((50_000, 32, 32, 3), (10_000, 32, 32, 3))
    assert set(np.bincount(train.labels)) == {500}
    assert set(np.bincount(test.labels)) == {100}
    assert (train.classes[0], train.classes[-1], len(set(train.columns["coarse_label"]))) == (
        "apple",
        "worm",
        20,
    )
    pixels = train.inputs.reshape(-1, 3)
    np.testing.assert_allclose(
        [pixels[:, c].mean() / 255 for c in range(3)], [0.5071, 0.4865, 0.4409], atol=1e-4
    )
    np.testing.assert_allclose(
        [pixels[:, c].std() / 255 for c in range(3)], [0.2673, 0.2564, 0.2762], atol=1e-4
    )


def test_omniglot_has_its_published_characters_and_alphabets() -> None:
    """1,623 characters of 50 alphabets, each drawn by 20 people (Lake et al. 2015)."""
    train, test = load_images(folder_of("omniglot28"), columns=["alphabet"])
    assert len(train) + len(test) == 32_460
    assert len(train.classes) == 1623
    assert len(set(train.columns["alphabet"])) == 50
    assert set(np.bincount(np.concatenate([train.labels, test.labels]))) == {20}


def test_sentiment_has_its_published_reviews_per_domain() -> None:
    """2,000 reviews of each product type, half of them positive (Blitzer et al. 2007)."""
    parts = load_text(folder_of("mdsd_sentiment"), columns=["domain"])
    domains = np.concatenate([part.columns["domain"] for part in parts])
    labels = np.concatenate([part.labels for part in parts])
    assert {name: int((domains == name).sum()) for name in set(domains)} == dict.fromkeys(
        ("books", "dvd", "electronics", "kitchen"), 2000
    )
    assert [labels[domains == name].mean() for name in sorted(set(domains))] == [0.5] * 4


def test_newsgroups_has_its_published_size_classes_and_domains() -> None:
    train, test = load_text(folder_of("newsgroups20"), columns=["domain"])
    assert (len(train.classes), len(set(train.columns["domain"]))) == (20, 7)
    assert (len(train), len(test)) == (11_219, 7451)


def test_crossner_has_its_published_entity_types_and_sizes() -> None:
    """39 entity types in 5 domains; 100 or 200 sentences each in training (Liu et al. 2021)."""
    train, test = load_ner(folder_of("crossner"), length=100, columns=["domain"])
    assert len({name[2:] for name in train.classes if name != "O"}) == 39
    assert len(train.classes) == 79
    sizes = {
        name: int((train.columns["domain"] == name).sum()) for name in set(train.columns["domain"])
    }
    assert sizes == {"politics": 200, "science": 200, "music": 100, "literature": 100, "ai": 100}
    assert len(test) == 2506
    for part in (train, test):
        tagged = part.labels >= 0
        np.testing.assert_array_equal(tagged, part.inputs > 0)  # each word is one token
