"""The tasks of the world of beacons: what is rewarded, how the agent moves, what it senses."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from everloop.contract import Task

Axis = Literal["reward", "dynamics", "senses", "all"]
COLOURS = ("red", "green", "blue")
RIGHT, WRONG = 1.0, -0.5
"""The rewards for reaching a beacon that the task rewards, and any other."""


class Dynamics(NamedTuple):
    """How the agent moves. Lengths are in half sides of the square, times in steps.

    Attributes:
        keep: Share of the velocity that is left after a step.
        thrust: Acceleration at full forward action.
        wind: Acceleration along x.
        turn: Sign of the turn action; -1 swaps left and right.
    """

    keep: float = 0.8
    thrust: float = 0.016
    wind: float = 0.0
    turn: float = 1.0


DYNAMICS = {
    "plain": Dynamics(),
    "slippery": Dynamics(keep=0.95, thrust=0.004),
    "windy": Dynamics(wind=0.006),
    "mirrored": Dynamics(turn=-1.0),
}
TOP_SPEED = max((d.thrust + d.wind) / (1 - d.keep) for d in DYNAMICS.values())
"""No task's speed exceeds this bound, in half sides per step."""
SENSES = ("all", "deaf", "blind", "noisy")
RULES = ("red", "green", "high", "ordered")

# The mean returns of a uniformly random agent and of the expert that sees the true state, for the
# default beacons, bands, horizon and continuous actions; standard errors are below 0.002 and 0.01.
# Measured by `python benchmarks/beacons_reference.py --episodes 20000`.
REFERENCE = {
    "red": (-0.021, 10.350),
    "green": (0.003, 10.540),
    "high": (0.042, 10.781),
    "ordered": (-0.018, 10.331),
    "slippery": (-0.012, 5.952),
    "windy": (-0.027, 9.579),
    "mirrored": (-0.019, 10.350),
}
# neither agent uses its senses
REFERENCE |= dict.fromkeys(("deaf", "blind", "noisy"), REFERENCE["red"])


def tasks_of(axis: Axis) -> tuple[Task, ...]:
    """Return the tasks of an axis. The first, "red", is the plain one that the others vary.

    Raises:
        ValueError: If there is no such axis.
    """
    plain = {"rewarded": "red", "dynamics": "plain", "senses": "all"}
    varied = {
        "reward": [{"rewarded": name} for name in RULES[1:]],
        "dynamics": [{"dynamics": name} for name in list(DYNAMICS)[1:]],
        "senses": [{"senses": name} for name in SENSES[1:]],
    }
    varied["all"] = [change for name in ("reward", "dynamics", "senses") for change in varied[name]]
    if axis not in varied:
        raise ValueError(f"axis is {axis!r}; choose one of {', '.join(varied)}")
    names = ["red", *(next(iter(change.values())) for change in varied[axis])]
    changes: list[dict[str, str]] = [{}, *varied[axis]]
    return tuple(
        Task(k, name, {**plain, **change})
        for k, (name, change) in enumerate(zip(names, changes, strict=True))
    )


def kinds(beacons: int, bands: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the colour and the band of each beacon, two arrays (beacons,).

    Colours alternate. Red beacons, and only they, sound in the lowest band, so that sight or
    hearing alone is enough to find them. Of the others, every second one of a colour sounds in the
    highest band, so that colour and pitch are told apart by different senses.
    """
    index = np.arange(beacons)
    colour = index % 3
    band = np.where(index // 3 % 2 == 1, bands - 1, 1 + (colour - 1) % (bands - 1))
    return colour, np.where(colour == 0, 0, band)


def worth(colour: npt.NDArray[np.int64], band: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Return the reward for reaching each beacon under each rule, (6, beacons).

    The rows are "red", "green", "high" (the highest band in use) and the three stages of "ordered",
    in which red, green and blue is the next colour.
    """
    right = [colour == 0, colour == 1, band == band.max(), colour == 0, colour == 1, colour == 2]
    return np.where(np.stack(right), RIGHT, WRONG).astype(np.float32)


def check_sizes(**sizes: tuple[Any, int, int]) -> None:
    """Check that each size, given as (value, lowest, highest), is an integer within its bounds.

    Raises:
        ValueError: If one is not.
    """
    for name, (value, low, high) in sizes.items():
        is_integer = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        if not is_integer or not low <= value <= high:
            raise ValueError(f"{name} is {value!r}; it must be an integer from {low} to {high}")


def check_flags(**flags: Any) -> None:
    """Check that each flag is True or False.

    Raises:
        ValueError: If one is not.
    """
    for name, value in flags.items():
        if not isinstance(value, (bool, np.bool_)):
            raise ValueError(f"{name} is {value!r}; it must be True or False")
