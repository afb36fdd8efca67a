"""The world of beacons as a picture from above, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from everloop.envs.beacons_senses import BEACON as FIRST_BEACON
from everloop.envs.beacons_senses import BEHIND, PALETTE, RADIUS, VIEW

if TYPE_CHECKING:
    from everloop.envs.beacons import BeaconsVectorEnv

SIDE = 256
MARGIN = 1.08
"""Half the side of what is shown, in half sides of the arena."""
_PIXEL = 2 * MARGIN / SIDE
_AXIS = (np.arange(SIDE) + 0.5) * _PIXEL - MARGIN
_X, _Y = np.meshgrid(_AXIS, -_AXIS)
FLOOR, GRID, WALL = (24, 26, 34), (36, 39, 50), (92, 94, 108)
AGENT, TRAIL = (255, 214, 92), (255, 190, 80)


def _blend(canvas: npt.NDArray[Any], alpha: npt.NDArray[Any], colour: Any) -> None:
    """Paint `colour` over the canvas, (SIDE, SIDE, 3), with opacity `alpha`, (SIDE, SIDE)."""
    canvas += alpha[..., None] * (np.asarray(colour, float) - canvas)


def _cover(distance: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the share of each pixel inside a shape, from its signed distance (negative inside)."""
    return np.clip(0.5 - distance / _PIXEL, 0.0, 1.0)


def _box(u: npt.NDArray[Any], v: npt.NDArray[Any], half: float) -> npt.NDArray[Any]:
    """Return the signed distance to a square of the given half side around 0."""
    distance: npt.NDArray[Any] = np.maximum(np.abs(u), np.abs(v)) - half
    return distance


def draw(world: BeaconsVectorEnv, copy: int) -> npt.NDArray[np.uint8]:
    """Return one copy from above, uint8 (256, 256, 3), north up.

    A lit beacon is a full disc, a dark one an outline. Rings spread from one that sounds. The
    agent is an arrow with its trail; the lighter square is what it sees.
    """
    canvas = np.empty((SIDE, SIDE, 3))
    canvas[:] = WALL
    inside = _cover(_box(_X, _Y, 1.0))
    _blend(canvas, inside, FLOOR)
    for line in (-0.5, 0.0, 0.5):
        for axis in (_X, _Y):
            _blend(canvas, inside * _cover(np.abs(axis - line) - 0.4 * _PIXEL), GRID)
    _draw_view(canvas, world, copy, inside)
    lit, sounding = world.signals()
    for i in range(len(world.colour)):
        place = world._bx[i, copy], world._by[i, copy]
        colour = PALETTE[FIRST_BEACON + world.colour[i]]
        pitch = world.band[i] / max(len(world._in_band) - 1, 1)
        _draw_beacon(canvas, place, colour, pitch, bool(lit[i, copy]), bool(sounding[i, copy]))
    _draw_agent(canvas, world, copy)
    return np.clip(np.round(canvas), 0, 255).astype(np.uint8)


def _turned(world: BeaconsVectorEnv, copy: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return each pixel's place in the agent's frame: ahead and left."""
    dx, dy = _X - world._x[copy], _Y - world._y[copy]
    cos, sin = float(world._cos[copy]), float(world._sin[copy])
    return dx * cos + dy * sin, dy * cos - dx * sin


def _draw_view(
    canvas: npt.NDArray[Any], world: BeaconsVectorEnv, copy: int, inside: npt.NDArray[Any]
) -> None:
    if not world.sees(copy):
        return
    ahead, left = _turned(world, copy)
    distance = _box(ahead - (VIEW / 2 - BEHIND), left, VIEW / 2)
    _blend(canvas, 0.10 * inside * _cover(distance), (255, 255, 255))
    _blend(canvas, 0.35 * inside * _cover(np.abs(distance) - 0.5 * _PIXEL), (255, 255, 255))


def _draw_beacon(
    canvas: npt.NDArray[Any], place: Any, colour: Any, pitch: float, lit: bool, sounding: bool
) -> None:
    """Draw a beacon; the higher its pitch (0 to 1), the closer its rings."""
    distance = np.hypot(_X - place[0], _Y - place[1])
    size = 0.06
    if sounding:
        gap = 0.055 - 0.03 * pitch
        for ring in range(1, 4):
            edge = np.abs(distance - size - 0.01 - ring * gap) - 0.6 * _PIXEL
            _blend(canvas, (0.85 - 0.2 * ring) * _cover(edge), colour)
    if lit:
        glow = np.exp(-((distance / (2 * RADIUS)) ** 2))
        _blend(canvas, 0.25 * glow, colour)
        _blend(canvas, _cover(distance - size), colour)
        shine = np.hypot(_X - place[0] + 0.018, _Y - place[1] - 0.02) - 0.016
        _blend(canvas, 0.6 * _cover(shine), (255, 255, 255))
    else:
        _blend(canvas, _cover(distance - size), FLOOR)
        _blend(canvas, 0.8 * _cover(np.abs(distance - size) - _PIXEL), colour)


def _draw_agent(canvas: npt.NDArray[Any], world: BeaconsVectorEnv, copy: int) -> None:
    trail = world._trail[:, :, copy]
    for age, (x, y) in enumerate(trail):
        dot = np.hypot(_X - x, _Y - y) - 0.012
        _blend(canvas, (0.1 + 0.6 * age / max(len(trail), 1)) * _cover(dot), TRAIL)
    ahead, left = _turned(world, copy)
    # an arrowhead: two sides and a notched back
    half = np.maximum(0.45 * ahead + np.abs(left) - 0.045, -ahead - 0.06 + 0.5 * np.abs(left) * -1)
    notch = -(ahead + 0.06 - 0.55 * (0.07 - np.abs(left)))
    shape = np.maximum(half, notch)
    _blend(canvas, 0.8 * _cover(shape - 0.014), (20, 18, 10))
    _blend(canvas, _cover(shape), AGENT)
