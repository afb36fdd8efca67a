"""What is out of a task's distribution: noise, corruptions, other data.

Each takes one example and a generator, and returns an example of the same shape and dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Example = npt.NDArray[Any]
Alteration = Callable[[Example, np.random.Generator], Example]


def uniform_noise(image: Example, rng: np.random.Generator) -> Example:
    """Nothing but noise: every value uniform from 0 to 255."""
    return rng.integers(0, 256, image.shape, dtype=np.uint8)


def gaussian_noise(image: Example, rng: np.random.Generator) -> Example:
    """Normal noise of standard deviation 50 added."""
    return _pixels(image + rng.normal(0.0, 50.0, image.shape))


def impulse_noise(image: Example, rng: np.random.Generator) -> Example:
    """A fifth of the pixels black or white."""
    hit = rng.random(image.shape[:2]) < 0.2
    return np.where(
        hit[..., None], np.where(rng.random(image.shape[:2]) < 0.5, 0, 255)[..., None], image
    ).astype(np.uint8)


def blur(image: Example, rng: np.random.Generator) -> Example:
    """A Gaussian blur as wide as a twelfth of the shorter side, at least one pixel."""
    from scipy.ndimage import gaussian_filter

    sigma = max(1.0, min(image.shape[:2]) / 12)
    return _pixels(gaussian_filter(image.astype(np.float32), (sigma, sigma, 0)))


def low_contrast(image: Example, rng: np.random.Generator) -> Example:
    """A quarter of the contrast about the mean."""
    return _pixels(image.mean() + 0.25 * (image - image.mean()))


def inverted(image: Example, rng: np.random.Generator) -> Example:
    """The negative."""
    return 255 - image


def noise_tokens(tokens: Example, rng: np.random.Generator) -> Example:
    """Other tokens in place of all, drawn uniformly from those the text could hold up to its own
    largest.
    """
    return np.where(
        tokens > 0, rng.integers(1, max(2, int(tokens.max()) + 1), tokens.shape), 0
    ).astype(tokens.dtype)


def shuffled_tokens(tokens: Example, rng: np.random.Generator) -> Example:
    """The same tokens in random order."""
    shuffled = tokens.copy()
    shuffled[tokens > 0] = rng.permutation(tokens[tokens > 0])
    return shuffled


def dropped_tokens(tokens: Example, rng: np.random.Generator) -> Example:
    """Three of ten tokens left out, their places empty."""
    return np.where(rng.random(tokens.shape) < 0.3, 0, tokens)


IMAGE_ALTERATIONS: Mapping[str, Alteration] = {
    "noise": uniform_noise,
    "gaussian-noise": gaussian_noise,
    "impulse-noise": impulse_noise,
    "blur": blur,
    "low-contrast": low_contrast,
    "inverted": inverted,
}
TEXT_ALTERATIONS: Mapping[str, Alteration] = {
    "noise": noise_tokens,
    "shuffled": shuffled_tokens,
    "dropped": dropped_tokens,
}


def other_data(inputs: Example) -> Alteration:
    """An example of another data set, `inputs` (N, ...), in place of the task's own; its label
    means nothing then.
    """

    def replace(example: Example, rng: np.random.Generator) -> Example:
        other: Example = inputs[int(rng.integers(len(inputs)))]
        return other

    return replace


def find_alterations(names: Sequence[str], known: Mapping[str, Alteration]) -> list[Alteration]:
    """The alterations called `names`.

    Raises ValueError that names one which is unknown, or for none at all.
    """
    for name in names:
        if name not in known:
            raise ValueError(f"ood is {name!r}, allowed: {', '.join(known)}")
    if not names:
        raise ValueError(f"ood is empty, allowed: at least one of {', '.join(known)}")
    return [known[name] for name in names]


def _pixels(values: npt.NDArray[Any]) -> Example:
    pixels: Example = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return pixels
