"""The world of beacons as a picture from above, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from everloop.envs.beacons_senses import BEACON as FIRST_BEACON
from everloop.envs.beacons_senses import BEHIND, PALETTE, VIEW

if TYPE_CHECKING:
    from everloop.envs.beacons import BeaconsVectorEnv

Array = npt.NDArray[Any]

SIDE = 256
MARGIN = 1.08
"""Half the side of what is shown, in half sides of the arena."""
PIXEL = 2 * MARGIN / SIDE
AXIS = (np.arange(SIDE) + 0.5) * PIXEL - MARGIN
FLOOR, GRID, WALL = (24, 26, 34), (36, 39, 50), (92, 94, 108)
WHITE, AGENT, TRAIL = (255, 255, 255), (255, 214, 92), (255, 176, 64)
SIZE = 0.06
"""Radius of a beacon; it is reached from further away."""


def draw(world: BeaconsVectorEnv, copy: int) -> npt.NDArray[np.uint8]:
    """Return one copy from above, uint8 (256, 256, 3), y upwards.

    A lit beacon is a full disc, a dark one an outline. Rings surround one that sounds; the higher
    its pitch, the closer they are. The agent is an arrow with its trail; the lighter square is what
    it sees.
    """
    canvas = np.full((SIDE, SIDE, 3), WALL, float)
    everything, x, y = _window(canvas, 0.0, 0.0, 2 * MARGIN)
    inside = _cover(_square(x, y, 1.0))
    _blend(everything, inside, FLOOR)
    for line in (-0.5, 0.0, 0.5):
        for axis in (x, y):
            _blend(everything, inside * _cover(np.abs(axis - line) - 0.4 * PIXEL), GRID)
    if world.sees(copy):
        _draw_view(canvas, world, copy, inside)
    lit, sounding = world.signals()
    for i in range(len(world.colour)):
        around = _window(canvas, world._bx[i, copy], world._by[i, copy], 0.45)
        colour = PALETTE[FIRST_BEACON + world.colour[i]]
        if sounding[i, copy]:
            _draw_rings(*around, colour, world.band[i] / (len(world._in_band) - 1))
        _draw_beacon(*around, colour, bool(lit[i, copy]))
    _draw_agent(canvas, world, copy)
    return np.clip(np.round(canvas), 0, 255).astype(np.uint8)


def _window(canvas: Array, x: float, y: float, half: float) -> tuple[Array, Array, Array]:
    """Return the canvas within `half` of a place, and its pixels' offsets from there in x and y."""
    columns = slice(*np.searchsorted(AXIS, [x - half, x + half]))
    rows = slice(*np.searchsorted(AXIS, [-y - half, -y + half]))
    dx, dy = np.meshgrid(AXIS[columns] - x, -AXIS[rows] - y)
    return canvas[rows, columns], dx, dy


def _blend(canvas: Array, alpha: Array, colour: Any) -> None:
    """Paint `colour` over the canvas, (H, W, 3), with the opacity `alpha`, (H, W)."""
    canvas += alpha[..., None] * (np.asarray(colour, float) - canvas)


def _cover(distance: Array) -> Array:
    """Return the share of each pixel inside a shape, from its signed distance (negative inside)."""
    return np.clip(0.5 - distance / PIXEL, 0.0, 1.0)


def _square(u: Array, v: Array, half: float) -> Array:
    """Return the signed distance to a square around 0."""
    return np.asarray(np.maximum(np.abs(u), np.abs(v)) - half)


def _turned(world: BeaconsVectorEnv, copy: int, dx: Array, dy: Array) -> tuple[Array, Array]:
    """Return offsets from the agent in its own frame: ahead and left."""
    cos, sin = float(world._cos[copy]), float(world._sin[copy])
    return dx * cos + dy * sin, dy * cos - dx * sin


def _draw_view(canvas: Array, world: BeaconsVectorEnv, copy: int, inside: Array) -> None:
    _, dx, dy = _window(canvas, world._x[copy], world._y[copy], 4 * MARGIN)
    ahead, left = _turned(world, copy, dx, dy)
    distance = _square(ahead - (VIEW / 2 - BEHIND), left, VIEW / 2)
    _blend(canvas, 0.09 * inside * _cover(distance), WHITE)
    _blend(canvas, 0.35 * inside * _cover(np.abs(distance) - 0.5 * PIXEL), WHITE)


def _draw_rings(canvas: Array, dx: Array, dy: Array, colour: Array, pitch: float) -> None:
    """Draw three rings; `pitch` is from 0 to 1."""
    distance = np.hypot(dx, dy)
    gap = 0.055 - 0.03 * pitch
    for ring in (1, 2, 3):
        edge = np.abs(distance - SIZE - 0.01 - ring * gap) - 0.6 * PIXEL
        _blend(canvas, (0.85 - 0.2 * ring) * _cover(edge), colour)


def _draw_beacon(canvas: Array, dx: Array, dy: Array, colour: Array, lit: bool) -> None:
    distance = np.hypot(dx, dy)
    if not lit:
        _blend(canvas, _cover(distance - SIZE), FLOOR)
        _blend(canvas, 0.8 * _cover(np.abs(distance - SIZE) - PIXEL), colour)
        return
    _blend(canvas, 0.25 * np.exp(-((distance / 0.2) ** 2)), colour)  # its glow
    _blend(canvas, _cover(distance - SIZE), colour)
    _blend(canvas, 0.6 * _cover(np.hypot(dx + 0.018, dy - 0.02) - 0.016), WHITE)


def _draw_agent(canvas: Array, world: BeaconsVectorEnv, copy: int) -> None:
    trail = world._trail[:, :, copy]
    for age, (x, y) in enumerate(trail):
        part, dx, dy = _window(canvas, x, y, 0.03)
        _blend(part, (0.1 + 0.6 * age / len(trail)) * _cover(np.hypot(dx, dy) - 0.011), TRAIL)
    part, dx, dy = _window(canvas, world._x[copy], world._y[copy], 0.16)
    ahead, left = _turned(world, copy, dx, dy)
    # an arrowhead from 0.08 ahead, with a notch at its back
    sides = (np.abs(left) + 0.45 * (ahead - 0.08)) / 1.1
    notch = -0.06 - ahead + 0.5 * (0.06 - np.abs(left))
    shape = np.maximum(sides, notch)
    _blend(part, 0.8 * _cover(shape - 0.014), (20, 18, 10))
    _blend(part, _cover(shape), AGENT)
