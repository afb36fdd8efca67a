"""A data set whose images carry their own row, for the streams' tests."""

from typing import Any

import numpy as np

from everloop.envs import Examples, ImageStreamVectorEnv, SplitClasses
from everloop.envs.data import from_arrays

CLASSES = np.array([2, 3, 5, 7, 11, 13])  # with gaps, so that a class is not its position
TEST_ROWS = 1000  # what the marks of test images begin with


def marked(examples: int, seed: int = 0, first: int = 0) -> tuple[Any, Any]:
    """Images that carry their row in two pixels, and labels in which every class occurs."""
    labels = np.random.default_rng(seed).permutation(np.resize(CLASSES, examples))
    images = np.random.default_rng(seed).integers(0, 256, (examples, 8, 8), np.uint8)
    images[:, 0, 0], images[:, 0, 1] = (
        (first + np.arange(examples)) % 256,
        (first + np.arange(examples)) // 256,
    )
    return images, labels


def data(examples: int = 40, test_examples: int = 20) -> tuple[Examples, Examples]:
    return from_arrays(*marked(examples), *marked(test_examples, seed=1, first=TEST_ROWS))


def row_of(image: Any) -> Any:
    return image[..., 0, 0, 0].astype(int) + 256 * image[..., 0, 1, 0].astype(int)


def stream(
    num_envs: int = 1,
    examples: int = 40,
    classes_per_task: int = 2,
    seed: int | None = None,
    **parameters: Any,
) -> Any:
    """A stream of marked images; seeded if a seed is given."""
    env = ImageStreamVectorEnv(
        num_envs, data(examples, examples), SplitClasses(classes_per_task), **parameters
    )
    if seed is not None:
        env.reset(seed=seed)
    return env


def infos(env: ImageStreamVectorEnv, steps: int) -> dict[str, Any]:
    """What `steps` steps say in their infos, (steps * num_envs,) each, in the order of the
    chain.
    """
    kept: list[dict[str, Any]] = [env.step(np.zeros(env.num_envs, int))[4] for _ in range(steps)]
    return {
        key: np.concatenate([info[key] for info in kept])
        for key in ("label", "index", "epoch", "origin", "leaked", "ood", "task")
    }
