"""A scripted agent that sees the true state of the world of beacons: the best known one."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from everloop.envs.beacons import MOVES, TURN_KEEP, TURN_THRUST, BeaconsVectorEnv
from everloop.envs.beacons_senses import RADIUS

AVOID = 0.2
"""Distance within which the expert steers around a beacon, in half sides of the square."""


def act(world: BeaconsVectorEnv) -> npt.NDArray[Any]:
    """Return the expert's actions for all copies, of the shape of the world's actions.

    It goes to the rewarded beacon that is nearest, in distance and in angle, and steers around the
    others. It corrects for wind and friction: the push that it wants is the one that gives it the
    velocity that it wants.
    """
    dx, dy = world._bx - world._x, world._by - world._y
    distance = np.maximum(np.hypot(dx, dy), 1e-6)
    right = world._worth[world._rule].T > 0
    ahead = (dx * world._cos + dy * world._sin) / distance
    cost = np.where(right, distance + 0.3 * (1 - ahead), np.inf)
    target, copies = cost.argmin(0), np.arange(world.num_envs)
    goal = np.stack([dx, dy])[:, target, copies] / distance[target, copies]
    goal = goal + _around(np.stack([dx, dy]) / distance, distance, ~right, goal)
    goal /= np.maximum(np.linalg.norm(goal, axis=0), 1e-6)
    top = world._thrust / (1 - world._keep)
    push = top * goal - world._keep * np.stack([world._vx, world._vy])
    push[0] -= world._wind
    return _steer(world, push / world._thrust)


def _around(
    unit: npt.NDArray[Any],
    distance: npt.NDArray[Any],
    wrong: npt.NDArray[np.bool_],
    goal: npt.NDArray[Any],
) -> npt.NDArray[Any]:
    """Return what to add to the direction `goal`, (2, n), to pass wrong beacons at the side.

    Args:
        unit: Directions to the beacons, (2, B, n).
        distance: Distances to them, (B, n).
        wrong: Which of them to avoid, (B, n).
        goal: The direction of the target, (2, n), of length 1.
    """
    in_the_way = (unit * goal[:, None]).sum(0) > 0
    closeness = np.clip((AVOID - distance) / (AVOID - RADIUS), 0.0, 1.0)
    weight = np.where(wrong & in_the_way, closeness, 0.0)
    side = np.sign(goal[0] * unit[1] - goal[1] * unit[0])
    side[side == 0] = 1.0
    tangent = np.stack([unit[1], -unit[0]]) * side
    return np.asarray((weight * (2.0 * tangent - unit)).sum(1))


def _steer(world: BeaconsVectorEnv, push: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the actions that turn towards `push`, (2, n), and push as far as they already can."""
    bearing = np.arctan2(push[1], push[0]) - world._heading
    bearing = (bearing + np.pi) % (2 * np.pi) - np.pi
    # the turn rate decays by itself: w + w keep + ... = w / (1 - keep)
    turn = (bearing * (1 - TURN_KEEP) - TURN_KEEP * world._spin) / TURN_THRUST
    turn = np.clip(turn * np.sign(world._turn), -1.0, 1.0)
    forward = np.clip(np.linalg.norm(push, axis=0) * np.cos(bearing), -1.0, 1.0)
    controls = np.stack([forward, turn], 1).astype(np.float32)
    if world.continuous:
        return controls
    return np.asarray(np.linalg.norm(controls[:, None] - MOVES, axis=2).argmin(1))
