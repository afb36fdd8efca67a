"""An agent that seeks beacons, which it sees and hears, on a square plane."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from everloop.contract import CUE, Observation
from everloop.envs import beacons_senses as senses
from everloop.envs import beacons_tasks as rules
from everloop.envs.beacons_picture import draw
from everloop.envs.task import Mask, OneCopyEnv, TaskVectorEnv, find_task

PERIOD = 60
"""Steps of a beacon's cycle: a third dark, a third silent, a third both lit and sounding."""
DEFAULTS = {"beacons": 6, "bands": 4, "horizon": 200, "continuous": True}
MOVES = np.array([[0, 0], [1, 0], [0, 1], [0, -1], [1, 1], [1, -1]], np.float32)
"""The discrete actions as (forward, turn)."""
TURN_KEEP = np.float32(0.5)
TURN_THRUST = np.float32(0.15)
TRAIL = 60
"""Steps of the trail in a rendered picture."""
CANDIDATES = 8
STATE = (
    *("x", "y", "vx", "vy", "heading", "spin"),
    *("bx", "by", "phase", "rule", "touched", "trail"),
)
"""The arrays that a saved state holds, by their names without the underscore."""
RENDER = {"render_modes": ["rgb_array"], "render_fps": 20}


class BeaconsVectorEnv(TaskVectorEnv):
    """`everloop/Beacons-v0`, natively batched.

    An agent moves on the square [-1, 1]^2 among beacons, each of a colour and a pitch. When it
    comes within 0.1 of a beacon, it is rewarded if the task rewards this one, and the beacon moves
    to another place. Each beacon goes through a cycle of 60 steps, from a random start: dark for
    20 steps (heard, not seen), silent for 20 (seen, not heard), and both lit and sounding for 20.

    Dynamics, for heading h, u = (cos h, sin h), angular velocity w and an action (f, r):

        w' = 0.5 w + 0.15 turn r          h' = h + w'
        v' = keep v + thrust f u(h') + (wind, 0)
        p' = clip(p + v', -1, 1)          a wall stops the velocity across it

    Lengths are in half sides of the square, times in steps, angles in radians. The plain values are
    keep 0.8, thrust 0.016, wind 0 and turn 1, so the top speed is 0.08.

    Action: Box [-1, 1], (2,): forward and turn (positive is to the left); values outside are
        clipped. If not `continuous`, Discrete(6): coast, forward, left, right, forward and left,
        forward and right.
    Observation (Dict of Box):
        vision (if `vision`): uint8 (size, size, 3), a square of side 1.5 from above, the heading
            up; the agent is at the middle, 0.1 above the lower edge. Beacons are discs of radius
            0.13; dark ones are not shown.
        hearing (if `hearing`): float32 (2 * bands,) in [0, beacons], the left ear's bands first.
            A beacon at distance d and bearing b, counterclockwise from the heading, adds
            min(1, 0.04 / d^2) (1 + cos(b -+ pi/4)) / 2 to its band in the left and right ear.
        touch: float32 (5,) in [-1, 1]: velocity ahead and to the left over the greatest top speed,
            0.11; w over 0.3; whether a wall was touched in the last step; whether a beacon was.
        cue (if `task_cue`): float32 (number of tasks,), one-hot of the task.
    Reward: 1 for reaching a beacon that the task rewards, -0.5 for any other, else 0; of several in
        one step only the nearest is reached. `info["reached"]` is its index, or -1.
    Episode: `horizon` steps, then truncated.
    Start: a random place and heading, at rest, all beacons far apart.

    Tasks of the axes; the first of each, "red", rewards the red beacons, with the plain dynamics
    and both senses:
        reward: green, high (the highest band), ordered (red, green, blue and again red).
        dynamics: slippery (keep 0.95, thrust 0.004), windy (wind 0.006), mirrored (turn -1).
        senses: deaf and blind (that sense is all 0), noisy (vision +-48, hearing with noise of
            standard deviation 0.05).

    Args:
        num_envs: Number of copies, 1 or more.
        axis: What distinguishes the tasks: "reward", "dynamics", "senses" or "all" three.
        size: Height and width of vision, in pixels, 8 to 256.
        beacons: Number of beacons, 3 to 24.
        bands: Number of frequency bands, 2 to 64.
        horizon: Steps per episode, 1 to 100,000.
        continuous: Whether actions are continuous.
        vision: Whether the observation has vision.
        hearing: Whether the observation has hearing.
        task_cue: Whether the observation shows the task.
        render_mode: None, or "rgb_array" for `render` to return pictures.
        autoreset_mode: SAME_STEP or DISABLED.

    Raises:
        ValueError: If an argument is outside its range, or if the axis "senses" or "all" lacks a
            sense.
    """

    def __init__(
        self,
        num_envs: int = 1,
        axis: rules.Axis = "reward",
        size: int = 16,
        beacons: int = 6,
        bands: int = 4,
        horizon: int = 200,
        continuous: bool = True,
        vision: bool = True,
        hearing: bool = True,
        task_cue: bool = False,
        render_mode: str | None = None,
        autoreset_mode: AutoresetMode = AutoresetMode.SAME_STEP,
    ) -> None:
        rules.check_sizes(
            size=(size, 8, 256),
            beacons=(beacons, 3, 24),
            bands=(bands, 2, 64),
            horizon=(horizon, 1, 100_000),
        )
        rules.check_flags(continuous=continuous, vision=vision, hearing=hearing, task_cue=task_cue)
        self.tasks = rules.tasks_of(axis)
        if axis in ("senses", "all") and not (vision and hearing):
            raise ValueError(
                f"axis is {axis!r}, but vision is {vision} and hearing is {hearing}; its tasks "
                "need both, so set both to True or choose another axis"
            )
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode is {render_mode!r}; it must be 'rgb_array' or None")
        self.horizon = horizon
        self.continuous = continuous
        self.reward_range = (rules.WRONG, rules.RIGHT)
        self._has = {"vision": vision, "hearing": hearing, CUE: task_cue}
        self.colour, self.band = rules.kinds(beacons, bands)
        self._worth = rules.worth(self.colour, self.band)
        self._eye = senses.Eye(size, self.colour)
        self._in_band = (np.arange(bands)[:, None] == self.band).astype(np.float32)
        self.single_observation_space = self._spaces(size, beacons, bands)
        self.single_action_space = (
            spaces.Box(-1.0, 1.0, (2,), np.float32) if continuous else spaces.Discrete(len(MOVES))
        )
        super().__init__(num_envs, autoreset_mode)
        self.metadata |= RENDER
        self.render_mode = render_mode
        sizes = {"beacons": beacons, "bands": bands, "horizon": horizon, "continuous": continuous}
        self._is_default = sizes == DEFAULTS
        self._allocate(num_envs, beacons)

    def _spaces(self, size: int, beacons: int, bands: int) -> spaces.Dict:
        modalities: dict[str, spaces.Space[Any]] = {
            "vision": spaces.Box(0, 255, (size, size, 3), np.uint8),
            "hearing": spaces.Box(0.0, beacons, (2 * bands,), np.float32),
            CUE: spaces.Box(0.0, 1.0, (len(self.tasks),), np.float32),
        }
        present = {name: box for name, box in modalities.items() if self._has[name]}
        return spaces.Dict({**present, "touch": spaces.Box(-1.0, 1.0, (5,), np.float32)})

    def _allocate(self, n: int, beacons: int) -> None:
        self._x, self._y, self._vx, self._vy, self._heading, self._spin = np.zeros(
            (6, n), np.float32
        )
        self._bx, self._by = np.zeros((2, beacons, n), np.float32)
        self._phase = np.zeros((beacons, n), np.int64)
        self._rule = np.zeros(n, np.int64)
        self._touched = np.zeros((2, n), np.bool_)
        self._trail = np.zeros((TRAIL if self.render_mode else 0, 2, n), np.float32)
        self._gather()

    def _gather(self) -> None:
        """Look up what the copies' tasks mean, and the direction of their headings."""
        params = [task.params for task in self.tasks]
        physics = np.array([rules.DYNAMICS[p["dynamics"]] for p in params], np.float32)
        self._keep, self._thrust, self._wind, turn = np.ascontiguousarray(physics[self.task].T)
        self._turn = turn * TURN_THRUST
        self._first_rule = np.array([rules.RULES.index(p["rewarded"]) for p in params])[self.task]
        sense = np.array([rules.SENSES.index(p["senses"]) for p in params])[self.task]
        self._deaf, self._blind, self._noisy = (np.flatnonzero(sense == k) for k in (1, 2, 3))
        self._cue = np.eye(len(self.tasks), dtype=np.float32)[self.task]
        self._cos, self._sin = np.cos(self._heading), np.sin(self._heading)

    def _begin(self, mask: Mask, seeded: bool) -> None:
        copies = np.flatnonzero(mask)
        rng, m = self.np_random, len(copies)
        self._x[copies], self._y[copies] = self._places((2, m))
        self._heading[copies] = np.float32(np.pi) * (2 * rng.random(m, dtype=np.float32) - 1)
        self._vx[copies] = self._vy[copies] = self._spin[copies] = 0.0
        self._touched[:, copies] = False
        self._phase[:, copies] = rng.integers(0, PERIOD, (len(self.colour), m))
        for i in range(len(self.colour)):
            self._bx[i, copies], self._by[i, copies] = self._far(copies, i)
        self._gather()
        self._rule[copies] = self._first_rule[copies]
        self._trail[:, 0, copies], self._trail[:, 1, copies] = self._x[copies], self._y[copies]

    def _places(self, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        places = self.np_random.random(shape, dtype=np.float32)
        places -= np.float32(0.5)
        places *= np.float32(1.8)
        return places

    def _far(self, copies: npt.NDArray[np.int64], placed: int) -> npt.NDArray[np.float32]:
        """Draw places, (2, len(copies)), far from the agent and the first `placed` beacons.

        Of a few random places the one is taken whose nearest neighbour is farthest.
        """
        taken_x = np.concatenate([self._x[None, copies], self._bx[:placed, copies]])[:, None]
        taken_y = np.concatenate([self._y[None, copies], self._by[:placed, copies]])[:, None]
        places = self._places((2, CANDIDATES, len(copies)))
        squared = (places[0] - taken_x) ** 2 + (places[1] - taken_y) ** 2
        best = squared.min(0).argmax(0)
        return np.asarray(places[:, best, np.arange(len(copies))])

    def _controls(self, actions: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Return the actions as forward and turn, (n, 2), in [-1, 1]."""
        given = np.asarray(actions)
        if given.shape != self.action_space.shape:
            raise ValueError(
                f"actions have shape {given.shape}; they must have shape {self.action_space.shape}"
            )
        if self.continuous:
            controls = np.clip(given.astype(np.float32), -1.0, 1.0)
            if not np.isfinite(controls).all():
                raise ValueError("an action is nan; each must be a number from -1 to 1")
            return controls
        if given.dtype.kind not in "iu" or given.min() < 0 or given.max() >= len(MOVES):
            raise ValueError(f"actions are {given}; each must be an integer from 0 to 5")
        moves: npt.NDArray[np.float32] = MOVES[given]
        return moves

    def _advance(self, actions: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], dict[str, Any]]:
        forward, turn = self._controls(actions).T
        self._spin *= TURN_KEEP
        self._spin += self._turn * turn
        self._heading += self._spin
        self._cos, self._sin = np.cos(self._heading), np.sin(self._heading)
        push = self._thrust * forward
        self._vx *= self._keep
        self._vx += push * self._cos
        self._vx += self._wind
        self._vy *= self._keep
        self._vy += push * self._sin
        self._touched[:] = False
        for place, velocity in ((self._x, self._vx), (self._y, self._vy)):
            place += velocity
            beyond = np.abs(place) > 1
            if beyond.any():
                self._touched[0] |= beyond
                velocity[beyond] = 0.0
                np.clip(place, -1.0, 1.0, out=place)
        if self.render_mode:
            self._trail[:-1] = self._trail[1:]
            self._trail[-1] = self._x, self._y
        return self._reach()

    def _reach(self) -> tuple[npt.NDArray[Any], dict[str, Any]]:
        """Reward the copies that are at a beacon, and move that beacon elsewhere."""
        rewards = np.zeros(self.num_envs, np.float32)
        reached = np.full(self.num_envs, -1)
        dx, dy = self._bx - self._x, self._by - self._y
        squared = dx * dx
        dy *= dy
        squared += dy
        copies = np.flatnonzero(squared.min(0) < np.float32(senses.RADIUS**2))
        if len(copies):
            which = squared[:, copies].argmin(0)
            reached[copies] = which
            rule = self._rule[copies]
            rewards[copies] = self._worth[rule, which]
            # rules 3, 4 and 5 are the stages of "ordered"
            stage = np.where(rule >= 3, 3 + (rule - 2) % 3, rule)
            self._rule[copies] = np.where(rewards[copies] > 0, stage, rule)
            self._touched[1, copies] = True
            self._bx[which, copies], self._by[which, copies] = self._far(copies, len(self.colour))
        return rewards, {"reached": reached}

    def signals(self) -> tuple[Mask, Mask]:
        """Return whether each beacon is lit and whether it sounds, two arrays (beacons, n)."""
        time = self._phase + self._elapsed
        time %= PERIOD
        lit = time >= PERIOD // 3
        return lit, ~lit | (time >= 2 * PERIOD // 3)

    def sees(self, copy: int) -> bool:
        """Return whether a copy sees anything, which depends on its task."""
        return self._has["vision"] and copy not in self._blind

    def _observe(self) -> Observation:
        observation: Observation = {}
        if self._has["vision"] or self._has["hearing"]:
            dx, dy = self._bx - self._x, self._by - self._y
            ahead = dx * self._cos + dy * self._sin
            left = dy * self._cos - dx * self._sin
            lit, sounding = self.signals()
            if self._has["vision"]:
                observation["vision"] = self._see(ahead, left, lit)
            if self._has["hearing"]:
                observation["hearing"] = self._hear(ahead, left, sounding)
        observation["touch"] = self._touch()
        if self._has[CUE]:
            observation[CUE] = self._cue.copy()
        return observation

    def _see(self, ahead: senses.Floats, left: senses.Floats, lit: Mask) -> npt.NDArray[np.uint8]:
        codes = self._eye.codes(self._x, self._y, self._cos, self._sin, ahead, left, lit)
        codes[self._blind] = 0
        picture = self._eye.picture(codes)
        if len(self._noisy):
            exact = picture[self._noisy].astype(np.int16)
            most = senses.PICTURE_NOISE
            exact += self.np_random.integers(-most, most + 1, exact.shape, np.int16)
            picture[self._noisy] = np.clip(exact, 0, 255)
        return picture

    def _hear(self, ahead: senses.Floats, left: senses.Floats, sounding: Mask) -> senses.Floats:
        heard = senses.hear(ahead, left, sounding, self._in_band)
        heard[self._deaf] = 0.0
        if len(self._noisy):
            exact = heard[self._noisy]
            noise = self.np_random.standard_normal(exact.shape, dtype=np.float32)
            exact += np.float32(senses.SOUND_NOISE) * noise
            heard[self._noisy] = np.clip(exact, 0.0, len(self.colour))
        return heard

    def _touch(self) -> senses.Floats:
        scale = np.float32(1 / rules.TOP_SPEED)
        vx, vy = self._vx * scale, self._vy * scale
        touch = np.empty((5, self.num_envs), np.float32)
        touch[0] = vx * self._cos + vy * self._sin
        touch[1] = vy * self._cos - vx * self._sin
        touch[2] = self._spin * np.float32(1 / 0.3)
        touch[3:] = self._touched
        return np.ascontiguousarray(np.clip(touch, -1.0, 1.0, out=touch).T)

    def _world_state(self) -> dict[str, Any]:
        return {name: getattr(self, f"_{name}").copy() for name in STATE}

    def _load_world_state(self, own: Mapping[str, Any]) -> None:
        for name in STATE:
            mine = getattr(self, f"_{name}")
            if mine.shape == own[name].shape:
                mine[:] = own[name]
            elif name == "trail":  # one of both worlds is not rendered
                mine[:, 0], mine[:, 1] = own["x"], own["y"]
            else:
                raise ValueError(
                    f"the state has {len(own['bx'])} beacons; this world has {len(self.colour)}"
                )
        self._gather()

    def reference(self, task: int | str) -> tuple[float, float]:
        """Return the mean returns of a uniformly random agent and of a scripted expert.

        The expert, `everloop.envs.beacons_expert`, sees the true state. Both are measured; they are
        nan unless `beacons`, `bands`, `horizon` and `continuous` have their default values.

        Raises:
            ValueError: If there is no such task.
        """
        name = find_task(self.tasks, task).name
        unknown = float("nan"), float("nan")
        return rules.REFERENCE.get(name, unknown) if self._is_default else unknown

    def render(self) -> tuple[npt.NDArray[np.uint8], ...] | None:
        """Return a picture of each copy from above, uint8 (256, 256, 3); None if not rendered."""
        if self.render_mode is None:
            return None
        return tuple(draw(self, copy) for copy in range(self.num_envs))


class BeaconsEnv(OneCopyEnv):
    """`everloop/Beacons-v0`, one copy; parameters as for `BeaconsVectorEnv`."""

    metadata: dict[str, Any] = RENDER

    def __init__(self, render_mode: str | None = None, **parameters: Any) -> None:
        world = BeaconsVectorEnv(
            1, render_mode=render_mode, autoreset_mode=AutoresetMode.DISABLED, **parameters
        )
        super().__init__(world)
        self.metadata = dict(RENDER)
        self.render_mode = render_mode

    def render(self) -> Any:
        """Return the picture, uint8 (256, 256, 3); None without a render mode."""
        pictures = self.world.render()
        return None if pictures is None else pictures[0]
