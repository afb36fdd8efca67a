"""Alterations that make an example out of distribution: noise, corruptions and other data.

Each takes one example and a generator, and returns a new example of the same shape and dtype.
Images are uint8 (H, W, C); texts are int32 token ids (L,), padded with 0; features are float32
(D,).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Example = npt.NDArray[Any]
Alteration = Callable[[Example, np.random.Generator], Example]


def uniform_noise(image: Example, rng: np.random.Generator) -> Example:
    """Replace the image with noise, uniform from 0 to 255."""
    return rng.integers(0, 256, image.shape, dtype=np.uint8)


def gaussian_noise(image: Example, rng: np.random.Generator) -> Example:
    """Add normal noise of standard deviation 50."""
    return _pixels(image + rng.normal(0.0, 50.0, image.shape))


def impulse_noise(image: Example, rng: np.random.Generator) -> Example:
    """Make a fifth of the pixels black or white, with equal probability."""
    hit = rng.random(image.shape[:2]) < 0.2
    extreme = np.where(rng.random(image.shape[:2]) < 0.5, 0, 255)
    return np.where(hit[..., None], extreme[..., None], image).astype(np.uint8)


def blur(image: Example, rng: np.random.Generator) -> Example:
    """Apply a Gaussian blur; sigma is a twelfth of the shorter side, at least one pixel."""
    from scipy.ndimage import gaussian_filter

    sigma = max(1.0, min(image.shape[:2]) / 12)
    return _pixels(gaussian_filter(image.astype(np.float32), (sigma, sigma, 0)))


def low_contrast(image: Example, rng: np.random.Generator) -> Example:
    """Reduce the contrast about the mean to a quarter."""
    return _pixels(image.mean() + 0.25 * (image - image.mean()))


def inverted(image: Example, rng: np.random.Generator) -> Example:
    """Return the negative."""
    return 255 - image


def noise_tokens(tokens: Example, rng: np.random.Generator) -> Example:
    """Replace every token with one drawn uniformly from 1 to the largest id in the text."""
    drawn = rng.integers(1, max(2, int(tokens.max()) + 1), tokens.shape)
    return np.where(tokens > 0, drawn, 0).astype(tokens.dtype)


def shuffled_tokens(tokens: Example, rng: np.random.Generator) -> Example:
    """Put the tokens in random order; the padding stays."""
    shuffled = tokens.copy()
    shuffled[tokens > 0] = rng.permutation(tokens[tokens > 0])
    return shuffled


def dropped_tokens(tokens: Example, rng: np.random.Generator) -> Example:
    """Replace three of ten tokens with padding."""
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


def feature_alterations(mean: Example, std: Example) -> Mapping[str, Alteration]:
    """Return the alterations of features.

    Args:
        mean: Mean of each number over the data, (D,).
        std: Its standard deviation, (D,).
    """

    def noise(features: Example, rng: np.random.Generator) -> Example:
        """Replace every number with a normal one of its mean and standard deviation."""
        return (mean + std * rng.standard_normal(len(mean))).astype(np.float32)

    def gaussian_noise(features: Example, rng: np.random.Generator) -> Example:
        """Add normal noise of each number's standard deviation."""
        return (features + std * rng.standard_normal(len(mean))).astype(np.float32)

    def masked(features: Example, rng: np.random.Generator) -> Example:
        """Replace three of ten numbers, at least one, with their mean, as if they were missing."""
        hidden = rng.permutation(len(mean))[: max(1, round(0.3 * len(mean)))]
        altered = features.copy()
        altered[hidden] = mean[hidden]
        return altered

    return {"noise": noise, "gaussian-noise": gaussian_noise, "masked": masked}


def other_data(inputs: Example) -> Alteration:
    """Return an alteration that replaces an example with one of `inputs`, (N, ...).

    The label keeps its value and then means nothing.
    """

    def replace(example: Example, rng: np.random.Generator) -> Example:
        other: Example = inputs[int(rng.integers(len(inputs)))]
        return other

    return replace


def find_alterations(names: Sequence[str], known: Mapping[str, Alteration]) -> list[Alteration]:
    """Return the alterations called `names`.

    Raises:
        ValueError: If a name is unknown, or if there are none.
    """
    for name in names:
        if name not in known:
            raise ValueError(f"ood holds {name!r}; choose from {', '.join(known)}")
    if not names:
        raise ValueError(f"ood is empty; choose at least one of {', '.join(known)}")
    return [known[name] for name in names]


def _pixels(values: npt.NDArray[Any]) -> Example:
    pixels: Example = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return pixels
