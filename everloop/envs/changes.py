"""Changes of what an agent sees and of what its actions do, by which tasks differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from everloop.contract import Observation


class ObservationChange:
    """Changes the modalities x of an observation, in this order:

        permute   x_i <- x_p(i), the same permutation p of a vector's entries at every step
        mirror    x <- -x for vectors, left and right exchanged for pictures
        scale     x <- scale x
        shift     x <- x + shift
        noise     x <- x + noise e, with e from N(0, 1) at every step

    Scale, shift and noise act on vectors, and noise on pictures too. Token ids stay as they are.
    Bounds are widened where values may leave them.

    Args:
        given: Names of changes and their values: `permute` is the seed of the permutation, 0 or
            more; `mirror` is true; the others are numbers.
        space: The Dict of modalities before the change.

    Attributes:
        space: The Dict of modalities after it.

    Raises:
        ValueError: If a name is unknown or a value is wrong.
    """

    KNOWN = ("permute", "mirror", "scale", "shift", "noise")

    def __init__(self, given: Mapping[str, Any], space: spaces.Dict) -> None:
        _check("observation", given, self.KNOWN)
        self.given = dict(given)
        self._orders: dict[str, npt.NDArray[np.int64]] = {}
        parts: dict[str, spaces.Space[Any]] = {}
        for name, part in space.spaces.items():
            assert isinstance(part, spaces.Box), "modalities are Boxes"
            changed = part
            if _is_vector(part):
                if "permute" in self.given:
                    rng = np.random.default_rng(int(self.given["permute"]))
                    self._orders[name] = rng.permutation(int(np.prod(part.shape)))
                changed = spaces.Box(-np.inf, np.inf, part.shape, np.float32)
            parts[name] = changed
        self.space = spaces.Dict(parts) if given else space

    def __call__(self, observation: Observation, rng: np.random.Generator) -> Observation:
        """Return the changed observation; the noise is drawn from `rng`."""
        if not self.given:
            return observation
        return {name: self._changed(name, x, rng) for name, x in observation.items()}

    def _changed(
        self, name: str, x: npt.NDArray[Any], rng: np.random.Generator
    ) -> npt.NDArray[Any]:
        given = self.given
        if x.dtype == np.uint8:
            turned: npt.NDArray[Any] = np.ascontiguousarray(x[:, ::-1])
            x = turned if given.get("mirror") else x
            if "noise" not in given:
                return x
            noisy: npt.NDArray[Any] = x + given["noise"] * rng.standard_normal(x.shape)
            return np.clip(np.round(noisy), 0, 255).astype(np.uint8)
        if x.dtype != np.float32:
            return x
        if name in self._orders:
            x = x.reshape(-1)[self._orders[name]].reshape(x.shape)
        x = -x if given.get("mirror") else x
        x = given.get("scale", 1.0) * x + given.get("shift", 0.0)
        if "noise" in given:
            x = x + given["noise"] * rng.standard_normal(x.shape)
        changed: npt.NDArray[Any] = np.asarray(x, dtype=np.float32)
        return changed


class ActionChange:
    """Changes the actions of an agent before the environment gets them.

        mirror    Box: a <- low + high - a; Discrete with n choices: a <- n - 1 - a
        permute   Discrete: a <- p(a), a fixed permutation of the choices

    Args:
        given: Names of changes and their values, as for `ObservationChange`.
        space: The environment's action space.

    Raises:
        ValueError: If a name is unknown, a value is wrong, or the space allows no such change.
    """

    KNOWN = ("permute", "mirror")

    def __init__(self, given: Mapping[str, Any], space: spaces.Space[Any]) -> None:
        _check("action", given, self.KNOWN)
        self.space = space
        self._table: npt.NDArray[np.int64] | None = None
        self._mirrored = bool(given.get("mirror", False))
        if isinstance(space, spaces.Discrete):
            n = int(space.n)
            table = np.arange(n)
            if "permute" in given:
                table = np.random.default_rng(int(given["permute"])).permutation(n)
            self._table = table[::-1].copy() if self._mirrored else table
        elif "permute" in given:
            raise ValueError(f"the action space is {space}; permute needs Discrete actions")
        elif self._mirrored and not (
            isinstance(space, spaces.Box) and np.isfinite([space.low, space.high]).all()
        ):
            raise ValueError(
                f"the action space is {space}; mirror needs Discrete actions or a Box with finite "
                "bounds"
            )

    def __call__(self, action: Any) -> Any:
        """Return what the environment gets."""
        if self._table is not None:
            start = int(self.space.start)  # type: ignore[attr-defined]
            return int(self._table[int(action) - start]) + start
        if self._mirrored:
            assert isinstance(self.space, spaces.Box), "checked above"
            mirrored = self.space.low + self.space.high - np.asarray(action)
            return mirrored.astype(self.space.dtype)
        return action


def _check(what: str, given: Any, known: tuple[str, ...]) -> None:
    """Check the names and the values of changes."""
    if not isinstance(given, Mapping):
        raise ValueError(
            f"the change of the {what} is {given!r}; write it as {{NAME: VALUE}} with "
            f"{', '.join(known)}"
        )
    for name, value in given.items():
        if name not in known:
            raise ValueError(
                f"unknown change {name!r} of the {what}; choose one of {', '.join(known)}"
            )
        if name == "mirror":
            if not isinstance(value, bool):
                raise ValueError(f"mirror of the {what} is {value!r}; it must be true or false")
        elif not _is_number(value):
            raise ValueError(f"{name} of the {what} is {value!r}; it must be a number")
        elif name == "noise" and value < 0:
            raise ValueError(f"noise of the {what} is {value}; it must be 0 or more")
        elif name == "permute" and (not isinstance(value, int) or value < 0):
            raise ValueError(
                f"permute of the {what} is {value!r}; it must be a whole number, 0 or more: the "
                "seed of the permutation"
            )


def _is_number(value: Any) -> bool:
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return plain and bool(np.isfinite(value))


def _is_vector(space: spaces.Box) -> bool:
    return space.dtype == np.float32
