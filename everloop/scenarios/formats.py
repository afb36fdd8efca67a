"""Observations that a user gives, checked and brought into a world's own format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from everloop.contract import CUE, Observation


def as_batch(obs: Any, space: spaces.Dict) -> tuple[Observation, bool]:
    """Return observations as a batch (B, ...) of each modality, in the order of the space.

    Args:
        obs: Modality name -> the value of one observation, (...), or of a batch of them, (B, ...).
            The cue may be missing.
        space: The world's space of one observation.

    Returns:
        The batch, and True if `obs` is one observation.

    Raises:
        ValueError: In one line, for wrong names, shapes or dtypes, and for numbers that are not
            finite or out of range.
    """
    if not isinstance(obs, Mapping):
        raise ValueError(
            f"the observation is a {type(obs).__name__}; give a dict of the modalities "
            f"{', '.join(space)}"
        )
    missing = [name for name in space if name not in obs and name != CUE]
    unknown = [str(name) for name in obs if name not in space.spaces]
    if missing or unknown:
        wrong = f"lacks {', '.join(missing)}" if missing else f"holds {', '.join(unknown)}"
        raise ValueError(f"the observation {wrong}; the world's modalities are {', '.join(space)}")
    arrays = {name: _typed(name, obs[name], space[name]) for name in space if name in obs}
    single = {array.ndim == len(space[name].shape or ()) for name, array in arrays.items()}
    if single == {True}:
        return {name: array[None] for name, array in arrays.items()}, True
    sizes = {
        name: len(array) if array.ndim > len(space[name].shape or ()) else "none"
        for name, array in arrays.items()
    }
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise ValueError(f"the modalities have batches of different sizes: {listed}")
    return arrays, False


def _typed(name: str, value: Any, space: Any) -> npt.NDArray[Any]:
    """Return the value of a modality in the dtype of its space, after checking it."""
    array = np.asarray(value)
    shape = tuple(space.shape)
    if shape not in (array.shape, array.shape[1:]):
        batch = ", ".join(["B", *map(str, shape)]) + ("," if not shape else "")
        raise ValueError(
            f"{name} has shape {array.shape}; one observation has shape {shape}, and a batch "
            f"({batch})"
        )
    if not np.can_cast(array.dtype, space.dtype, "same_kind"):
        raise ValueError(f"{name} is {array.dtype}; it must be {space.dtype}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = array[~np.isfinite(array)].flat[0]
        raise ValueError(f"{name} holds {bad}; observations must be finite")
    if space.dtype.kind in "iu" and array.size:
        low, high = space.low.min(), space.high.max()
        if array.min() < low or array.max() > high:
            bad = array.min() if array.min() < low else array.max()
            raise ValueError(f"{name} holds {bad}; its numbers range from {low} to {high}")
    return array.astype(space.dtype, copy=False)


def with_channel(images: Any, space: spaces.Space[Any]) -> Any:
    """Return pictures (B, H, W) as (B, H, W, 1), if the world's have one channel."""
    shape, given = tuple(space.shape or ()), np.shape(images)
    if len(shape) == 3 and shape[2] == 1 and len(given) == 3 and given[1:] == shape[:2]:
        return np.asarray(images)[..., None]
    return images
