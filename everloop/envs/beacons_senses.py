"""What the agent among the beacons sees and hears, as functions of arrays over all copies.

Everywhere n is the number of copies and B that of beacons. The beacons' places are given in the
agent's frame: `ahead` and `left`, (B, n) float32, in half sides of the square.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

VIEW = 1.5
"""Side of the square that the picture shows, in half sides of the arena."""
BEHIND = 0.1
"""How much of it lies behind the agent."""
NEAR = 0.2
"""Distance within which a sound gets no louder."""
EAR_ANGLE = np.float32(np.pi / 4)
"""Angle between the heading and the direction in which an ear hears best, in radians."""
RADIUS = 0.1
"""Distance at which the agent reaches a beacon."""
SHOWN = 0.13
"""Radius of a beacon in the picture."""

PALETTE = np.array(
    [
        [0, 0, 0],  # nothing is seen
        [24, 26, 34],  # floor
        [120, 120, 130],  # beyond the walls
        [235, 64, 60],
        [66, 205, 98],
        [80, 130, 255],
    ],
    np.uint8,
)
"""Colours of the picture: nothing, floor, wall, then those of the beacons."""
FLOOR, WALL, BEACON = 1, 2, 3
PICTURE_NOISE = 48
"""A noisy picture's values change by up to this much."""
SOUND_NOISE = 0.05
"""Standard deviation of the noise of a noisy ear."""


class Eye:
    """The egocentric picture: the square ahead of the agent from above, the heading up.

    Args:
        size: Height and width of the picture, in pixels.
        colour: Colour of each beacon, (B,), an index from 0.
    """

    def __init__(self, size: int, colour: npt.NDArray[np.int64]) -> None:
        self.size = size
        self.pixel = VIEW / size
        centers = (np.arange(size) + 0.5) * self.pixel
        ahead = np.repeat(VIEW - BEHIND - centers, size)
        left = np.tile(VIEW / 2 - centers, size)
        self._grid = np.stack([ahead, left]).astype(np.float32)
        self._code = (BEACON + colour).astype(np.uint8)
        reach = int(np.ceil(SHOWN / self.pixel))
        offsets = np.arange(-reach, reach + 1)
        self._rows = np.repeat(offsets, len(offsets))
        self._columns = np.tile(offsets, len(offsets))

    def codes(
        self, x: Floats, y: Floats, cos: Floats, sin: Floats, ahead: Floats, left: Floats, lit: Mask
    ) -> npt.NDArray[np.uint8]:
        """Return the picture as indices into `PALETTE`, (n, size * size).

        Args:
            x: The agents' places, (n,).
            y: Likewise.
            cos: Cosine of their headings, (n,).
            sin: Likewise.
            ahead: Places of the beacons, (B, n).
            left: Likewise.
            lit: Whether a beacon is seen, (B, n).
        """
        n = len(x)
        # an orthogonal projection on each axis: |x| > 1 or |y| > 1 lies beyond a wall
        across = np.stack([cos, -sin], 1) @ self._grid
        across += x[:, None]
        along = np.stack([sin, cos], 1) @ self._grid
        along += y[:, None]
        np.abs(across, out=across)
        np.abs(along, out=along)
        np.maximum(across, along, out=across)
        codes = (across > 1).view(np.uint8)
        codes += np.uint8(FLOOR)
        row = (VIEW - BEHIND - ahead) / np.float32(self.pixel)
        column = (VIEW / 2 - left) / np.float32(self.pixel)
        margin = SHOWN / self.pixel
        inside = lit & (row > -margin) & (row < self.size + margin)
        inside &= (column > -margin) & (column < self.size + margin)
        which, copy = np.nonzero(inside)
        row, column = row[which, copy], column[which, copy]
        first_row, first_column = np.floor(row).astype(np.int32), np.floor(column).astype(np.int32)
        r = first_row[:, None] + self._rows.astype(np.int32)
        c = first_column[:, None] + self._columns.astype(np.int32)
        disc = (r + np.float32(0.5) - row[:, None]) ** 2
        disc += (c + np.float32(0.5) - column[:, None]) ** 2
        covered = disc < max(margin, 0.75) ** 2  # coarse pixels show a beacon nevertheless
        covered &= (r >= 0) & (r < self.size) & (c >= 0) & (c < self.size)
        at = (copy[:, None] * self.size + r) * self.size + c
        code = np.broadcast_to(self._code[which][:, None], at.shape)
        codes.reshape(-1)[at[covered]] = code[covered]
        return codes.reshape(n, self.size * self.size)

    def picture(self, codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Return the colours, uint8 (n, size, size, 3), of `codes`."""
        return PALETTE.take(codes, axis=0).reshape(-1, self.size, self.size, 3)


def loudness(ahead: Floats, left: Floats) -> Floats:
    """Return how loud each beacon is at the left and the right ear, (2, B, n), in [0, 1].

        L = min(1, NEAR^2 / d^2) * (1 + cos(b -+ EAR_ANGLE)) / 2

    for a beacon at distance d and bearing b (counterclockwise from the heading).
    """
    squared = ahead * ahead
    squared += left * left
    np.maximum(squared, np.float32(1e-12), out=squared)
    unit = np.float32(1) / np.sqrt(squared)
    strength = np.minimum(np.float32(0.5), np.float32(NEAR**2 / 2) / squared)
    forward = ahead * unit * np.cos(EAR_ANGLE)
    forward += 1
    sideways = left * unit * np.sin(EAR_ANGLE)
    ears = np.empty((2, *ahead.shape), np.float32)
    np.add(forward, sideways, out=ears[0])
    np.subtract(forward, sideways, out=ears[1])
    ears *= strength
    return np.clip(ears, 0, 1, out=ears)


def hear(ahead: Floats, left: Floats, sounding: Mask, in_band: Floats) -> Floats:
    """Return both ears' loudness by band, (n, 2 * bands), the left ear first.

    Args:
        ahead: Places of the beacons, (B, n).
        left: Likewise.
        sounding: Whether a beacon sounds, (B, n).
        in_band: 1 where a beacon sounds in a band, else 0, (bands, B).
    """
    ears = loudness(ahead, left)
    ears *= sounding
    heard = np.matmul(in_band, ears)  # (2, bands, n)
    return np.ascontiguousarray(heard.reshape(-1, heard.shape[-1]).T)
