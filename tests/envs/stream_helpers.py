"""Streams of images that carry their own row, so that tests know which example was shown."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from everloop.envs import Examples, ImageStreamVectorEnv, SplitClasses
from everloop.envs.data import from_arrays

CLASSES = np.array([2, 3, 5, 7, 11, 13])  # with gaps, so that a class is not its position
TEST_ROWS = 1000  # number of the first test image


def numbered(examples: int, seed: int = 0, first: int = 0) -> tuple[Any, Any]:
    """Return images that carry their number in two pixels, and labels of every class."""
    labels = np.random.default_rng(seed).permutation(np.resize(CLASSES, examples))
    images = np.random.default_rng(seed).integers(0, 256, (examples, 8, 8), np.uint8)
    numbers = first + np.arange(examples)
    images[:, 0, 0], images[:, 0, 1] = numbers % 256, numbers // 256
    return images, labels


def data(examples: int = 40, test_examples: int = 20) -> tuple[Examples, Examples]:
    return from_arrays(*numbered(examples), *numbered(test_examples, seed=1, first=TEST_ROWS))


def row_of(image: Any, split: str = "train") -> Any:
    """Return the rows in the split of images (..., 8, 8, 1)."""
    numbers = image[..., 0, 0, 0].astype(int) + 256 * image[..., 0, 1, 0].astype(int)
    return numbers - (TEST_ROWS if split == "test" else 0)


def stream(
    num_envs: int = 1,
    examples: int = 40,
    classes_per_task: int = 2,
    seed: int | None = None,
    **parameters: Any,
) -> Any:
    """Return a stream of numbered images, which is reset if a seed is given."""
    env = ImageStreamVectorEnv(
        num_envs, data(examples, examples), SplitClasses(classes_per_task), **parameters
    )
    if seed is not None:
        env.reset(seed=seed)
    return env


def switch(env: Any, task: int, mask: Sequence[bool]) -> None:
    """Switch the masked copies to a task, or all copies if the mask is empty or all False."""
    masked = {"reset_mask": np.array(mask)} if any(mask) else {}
    env.reset(options={"task": task, **masked})


def infos(env: ImageStreamVectorEnv, steps: int) -> dict[str, Any]:
    """Step with action 0; return each info of all steps, (steps * num_envs,), in order."""
    kept: list[dict[str, Any]] = [env.step(np.zeros(env.num_envs, int))[4] for _ in range(steps)]
    return {
        key: np.concatenate([info[key] for info in kept])
        for key in ("label", "index", "epoch", "origin", "leaked", "ood", "task")
    }
