"""Each wrong input of the image stream is refused by one line that names it."""

from typing import Any

import numpy as np
import pytest

from everloop.envs import ImageStreamVectorEnv

LABELS = np.arange(12) % 4


def arrays(**changes: Any) -> dict[str, Any]:
    images = np.zeros((12, 8, 8), np.uint8)
    return {"images": images, "labels": LABELS, "test_images": images, "test_labels": LABELS} | changes


def refused(parameters: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=line) as caught:
        ImageStreamVectorEnv(**parameters)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"labels": LABELS[:11]}, r"^images hold 12 examples and labels have shape \(11,\), allowed: \(12,\)"),
        ({"test_labels": LABELS[:5]}, r"^test_images hold 12 examples and test_labels have shape \(5,\)"),
        ({"labels": LABELS[:, None]}, r"^images hold 12 examples and labels have shape \(12, 1\)"),
        ({"images": np.zeros((12, 8, 8))}, r"^images have dtype float64 and shape \(12, 8, 8\), allowed: uint8"),
        ({"test_images": np.zeros((12, 8, 8), np.int64)}, r"^test_images have dtype int64"),
        ({"images": np.zeros((12, 64), np.uint8)}, r"^images have dtype uint8 and shape \(12, 64\), allowed: uint8, \(N, H, W\)"),
        ({"labels": LABELS.astype(float)}, r"^labels have dtype float64, allowed: integers"),
        ({"test_labels": LABELS.astype(str)}, r"^test_labels have dtype <U"),
        ({"labels": LABELS - 1}, r"^labels .*-1"),
        ({"test_images": np.zeros((12, 9, 9), np.uint8)}, r"test_images.*\(9, 9, 1\)"),
        ({"test_images": np.zeros((12, 8, 8, 3), np.uint8)}, r"test_images.*\(8, 8, 3\)"),
        ({"images": np.zeros((0, 8, 8), np.uint8), "labels": LABELS[:0]}, r"images hold 0 examples"),
        ({"classes_per_task": 3}, r"^classes_per_task is 3, allowed: a divisor of the 4 classes"),
        ({"classes_per_task": 0}, r"^classes_per_task is 0"),
        ({"classes_per_task": -2}, r"^classes_per_task is -2"),
        ({"split": "valid"}, r"^split is 'valid', allowed: train, test"),
        ({"label_space": "local"}, r"^label_space is 'local', allowed: global, within_task"),
        ({"episode_length": 0}, r"^episode_length is 0, allowed: 1 or more"),
        ({"num_envs": 0}, r"^num_envs is 0, allowed: 1 or more"),
        ({"test_labels": LABELS + 5, "split": "test"}, r"^label 5 is in the test labels only"),
        ({"test_labels": LABELS % 2, "split": "test"}, r"^task 1 \(classes 2, 3\) has no example in the test split"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], line: str) -> None:
    refused(arrays(**changes), line)


@pytest.mark.parametrize("missing", ["images", "labels", "test_images", "test_labels"])
def test_the_four_arrays_go_together(missing: str) -> None:
    line = "^images, labels, test_images and test_labels go together: give all four or none"
    refused(arrays(**{missing: None}), line)
    refused({missing: arrays()[missing]}, line)


@pytest.mark.parametrize("shape", [(), (3,), (5,), (4, 2)])
def test_guesses_of_the_wrong_shape_are_refused_and_skip_no_example(shape: tuple[int, ...]) -> None:
    env = ImageStreamVectorEnv(4, **arrays(), split="test")
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"actions have shape \(.*\), allowed: \(4,\)"):
        env.step(np.zeros(shape, int))
    assert env.step(np.zeros(4, int))[4]["index"].tolist() == [0, 1, 4, 5]


def test_unknown_tasks_are_refused_where_examples_are_counted() -> None:
    with pytest.raises(ValueError, match="unknown task 2"):
        ImageStreamVectorEnv(**arrays()).examples(2)
