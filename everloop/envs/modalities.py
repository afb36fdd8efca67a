"""Observations of any Gymnasium environment as a flat Dict of modalities."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from everloop.contract import CUE, FEEDBACK, PRESENCE, Observation
from everloop.envs.tokens import Tokens

SMALLEST = 7
"""Height and width in pixels from which two axes of bytes are a picture."""
WHOLE = "observation"
"""Name of the modality of an environment whose observation is not a Dict or a Tuple."""

Convert = Callable[[Any], npt.NDArray[Any]]


class Modalities:
    """Converts the observations of an environment to modalities.

    A Dict or Tuple, nested or not, becomes flat: the names of its parts are joined by "_".

    | space | modality |
    |---|---|
    | Box of bytes, (H, W, C), (C, H, W) with C up to 4, or (H, W) of 7 or more | a picture, uint8 (H, W, C) |
    | any other Box | a vector of numbers, float32; pictures of other numbers become flat |
    | Discrete, MultiDiscrete | each choice one-hot, float32 |
    | MultiBinary | float32 |
    | Text | ids of its characters, in `Tokens` |

    Args:
        space: The environment's observation space.

    Attributes:
        space: The Dict of modalities.

    Raises:
        ValueError: If a part has another kind of space, or two parts get the same name.
    """  # noqa: E501

    def __init__(self, space: spaces.Space[Any]) -> None:
        self._parts: dict[str, tuple[tuple[Any, ...], Convert]] = {}
        boxes: dict[str, spaces.Space[Any]] = {}
        for path, part in _leaves(space):
            name = "_".join(map(str, path)) or WHOLE
            name = f"seen_{name}" if name in (CUE, PRESENCE, FEEDBACK) else name.replace(".", "_")
            if name in boxes:
                raise ValueError(
                    f"two parts of the observation space get the name {name!r}; rename one of them"
                )
            boxes[name], convert = _modality(name, part)
            self._parts[name] = path, convert
        self.space = spaces.Dict(boxes)

    def __call__(self, observation: Any) -> Observation:
        """Return the modalities of an observation, in new arrays."""
        found: Observation = {}
        for name, (path, convert) in self._parts.items():
            part = observation
            for key in path:
                part = part[key]
            found[name] = convert(part)
        return found


def _leaves(
    space: spaces.Space[Any], path: tuple[Any, ...] = ()
) -> Iterator[tuple[tuple[Any, ...], spaces.Space[Any]]]:
    """Yield the parts of a space that are neither Dict nor Tuple, with the keys that lead there."""
    if isinstance(space, spaces.Dict):
        for key, part in space.spaces.items():
            yield from _leaves(part, (*path, key))
    elif isinstance(space, spaces.Tuple):
        for i, part in enumerate(space.spaces):
            yield from _leaves(part, (*path, i))
    else:
        yield path, space


def _modality(name: str, space: spaces.Space[Any]) -> tuple[spaces.Box, Convert]:
    """Return the space of a modality, and the function that converts to it."""
    if isinstance(space, Tokens):
        return space, lambda x: np.array(x)
    if isinstance(space, spaces.Box):
        return _of_box(space)
    if isinstance(space, spaces.Discrete):
        n, start = int(space.n), int(space.start)
        return _unit(n), lambda x: np.eye(n, dtype=np.float32)[int(x) - start]
    if isinstance(space, spaces.MultiDiscrete):
        sizes, start_of = space.nvec.reshape(-1), space.start.reshape(-1)
        offsets = np.cumsum(sizes) - sizes - start_of

        def choices(x: Any) -> npt.NDArray[Any]:
            flat = np.zeros(int(sizes.sum()), np.float32)
            flat[np.asarray(x).reshape(-1) + offsets] = 1.0
            return flat

        return _unit(int(sizes.sum())), choices
    if isinstance(space, spaces.MultiBinary):
        bits = int(np.prod(space.shape))
        return _unit(bits), lambda x: np.array(x, dtype=np.float32).reshape(-1)
    if isinstance(space, spaces.Text):
        return _of_text(space)
    raise ValueError(
        f"part {name!r} of the observation is {space}, which is no modality; wrap the environment "
        "so that it shows a Box, Discrete, MultiDiscrete, MultiBinary or Text there"
    )


def _unit(size: int) -> spaces.Box:
    return spaces.Box(0.0, 1.0, (size,), np.float32)


def _of_box(space: spaces.Box) -> tuple[spaces.Box, Convert]:
    shape = space.shape
    if space.dtype == np.uint8 and len(shape) == 3:
        if shape[0] <= 4 < shape[2]:  # channels first
            box = spaces.Box(0, 255, (*shape[1:], shape[0]), np.uint8)
            return box, lambda x: np.ascontiguousarray(np.moveaxis(np.asarray(x), 0, -1))
        return spaces.Box(0, 255, shape, np.uint8), lambda x: np.array(x, dtype=np.uint8)
    if space.dtype == np.uint8 and len(shape) == 2 and min(shape) >= SMALLEST:
        grey = spaces.Box(0, 255, (*shape, 1), np.uint8)
        return grey, lambda x: np.array(x, dtype=np.uint8)[..., None]
    size = shape if len(shape) in (1, 2) else (int(np.prod(shape)),)
    with np.errstate(over="ignore"):
        low, high = space.low.astype(np.float32), space.high.astype(np.float32)
    vector = spaces.Box(low.reshape(size), high.reshape(size), dtype=np.float32)
    return vector, lambda x: np.array(x, dtype=np.float32).reshape(size)


def _of_text(space: spaces.Text) -> tuple[spaces.Box, Convert]:
    """Return the ids of the characters, from 1, padded with 0."""
    ids = {character: i + 1 for i, character in enumerate(sorted(space.character_set))}
    tokens = Tokens(len(ids) + 1, space.max_length)

    def encode(text: Any) -> npt.NDArray[Any]:
        row = np.zeros(space.max_length, np.int32)
        row[: len(text)] = [ids[character] for character in text]
        return row

    return tokens, encode
