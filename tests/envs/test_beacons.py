"""The world of beacons moves, looks, sounds and rewards as documented."""

import subprocess
import sys
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everloop.envs import BeaconsEnv, BeaconsVectorEnv, make_vec
from everloop.envs.beacons import PERIOD
from everloop.envs.beacons_expert import act
from everloop.envs.beacons_senses import PALETTE, loudness
from everloop.envs.beacons_tasks import DYNAMICS, TOP_SPEED

TASKS = tuple(task.name for task in BeaconsVectorEnv(axis="all").tasks)
FLOOR, WALL, RED, GREEN, BLUE = PALETTE[1:].tolist()
FAR = 0.95
LIT, DARK, SILENT = 2 * PERIOD // 3, 0, PERIOD // 3
"""Phases in which a beacon is both lit and sounding, dark, and silent."""


def arranged(places: dict[int, tuple[float, float]], **parameters: Any) -> BeaconsVectorEnv:
    """Return a world whose agent is at rest at 0, heading along x.

    Beacons are lit and sound; those without a place are in the corner behind the agent.
    """
    world = BeaconsVectorEnv(**parameters)
    world.reset(seed=0)
    for array in (world._x, world._y, world._heading):
        array[:] = 0.0
    world._bx[:], world._by[:], world._phase[:] = -FAR, -FAR, LIT
    for i, (x, y) in places.items():
        world._bx[i], world._by[i] = x, y
    world._gather()
    return world


def move(world: BeaconsVectorEnv, forward: float, turn: float, steps: int) -> Any:
    for _ in range(steps):
        result = world.step(np.tile(np.float32([forward, turn]), (world.num_envs, 1)))
    return result


def pixels(picture: Any, colour: list[int]) -> Any:
    """Return the mean place, in shares of the picture (row, column), and number of pixels."""
    rows, columns = np.nonzero((picture == colour).all(-1))
    size = len(picture)
    return (rows + 0.5).mean() / size, (columns + 0.5).mean() / size, len(rows)


@given(st.floats(0.25, 1.8), st.floats(-np.pi, np.pi))
@settings(deadline=None, max_examples=40)
def test_loudness_falls_with_the_squared_distance_and_with_the_angle(d: float, b: float) -> None:
    """L = 0.04 / d^2 * (1 + cos(b -+ pi/4)) / 2, computed here in double precision."""
    ahead, left = np.float32([[d * np.cos(b)]]), np.float32([[d * np.sin(b)]])
    ears = loudness(ahead, left)[:, 0, 0]
    expected = [0.04 / d**2 * (1 + np.cos(b - side * np.pi / 4)) / 2 for side in (1, -1)]
    np.testing.assert_allclose(ears, expected, atol=1e-6, rtol=1e-4)
    twice = loudness(2 * ahead, 2 * left)[:, 0, 0]
    np.testing.assert_allclose(twice, ears / 4, atol=1e-6, rtol=1e-4)


def test_each_beacon_is_heard_in_its_own_band_and_louder_on_its_side() -> None:
    """Each beacon alone within hearing; the others are silent."""
    for i in range(6):
        world = arranged({i: (0.1, 0.3)})
        world._phase[:] = SILENT
        world._phase[i] = LIT
        left, right = world._observe()["hearing"][0].reshape(2, 4)
        band = world.band[i]
        assert left[band] > 2 * right[band] > 0
        assert np.count_nonzero([left, right]) == 2


def test_red_beacons_alone_have_the_lowest_pitch_and_green_ones_need_sight() -> None:
    """So red is found by either sense; no set of bands is that of the green beacons."""
    world = BeaconsVectorEnv()
    np.testing.assert_array_equal(world.colour == 0, world.band == 0)
    green, other = (set(world.band[mask]) for mask in (world.colour == 1, world.colour != 1))
    assert green & other
    high = world.band == 3
    assert set(world.colour[high]) & set(world.colour[~high])


@pytest.mark.parametrize("size", [8, 16, 64])
def test_beacons_are_seen_in_their_colour_where_they_are(size: int) -> None:
    """The picture shows 1.4 ahead and 0.75 to either side."""
    places = {0: (0.7, 0.0), 1: (0.4, 0.4), 2: (0.8, -0.5)}
    world = arranged(places, size=size)
    picture = world._observe()["vision"][0]
    for (x, y), colour in zip(places.values(), (RED, GREEN, BLUE), strict=True):
        row, column, count = pixels(picture, colour)
        assert row == pytest.approx((1.4 - x) / 1.5, abs=0.6 / size)
        assert column == pytest.approx((0.75 - y) / 1.5, abs=0.6 / size)
        if size == 64:  # a disc of radius 0.13
            assert count == pytest.approx(np.pi * (0.13 / 1.5 * size) ** 2, rel=0.1)
    row, _, count = pixels(picture, WALL)
    assert count == pytest.approx(0.4 / 1.5 * size**2, abs=size)
    assert row == pytest.approx(0.2 / 1.5, abs=0.6 / size)


@given(st.integers(0, 10**6))
@settings(deadline=None, max_examples=20)
def test_the_walls_are_seen_where_they_are(seed: int) -> None:
    """Each pixel's centre is placed in the arena in double precision."""
    world = BeaconsVectorEnv(3, size=24)
    world.reset(seed=seed)
    world._bx[:] = 9.0  # out of sight
    shown = (world._observe()["vision"] == WALL).all(-1)
    centers = (np.arange(24) + 0.5) * 1.5 / 24
    ahead, left = np.meshgrid(1.4 - centers, 0.75 - centers, indexing="ij")
    for i in range(3):
        h = float(world._heading[i])
        x = world._x[i] + ahead * np.cos(h) - left * np.sin(h)
        y = world._y[i] + ahead * np.sin(h) + left * np.cos(h)
        depth = np.maximum(np.abs(x), np.abs(y)) - 1
        clear = np.abs(depth) > 1e-5
        np.testing.assert_array_equal(shown[i][clear], depth[clear] > 0)


@pytest.mark.parametrize("start", [DARK, SILENT, LIT])
def test_a_dark_beacon_is_invisible_and_a_silent_one_inaudible(start: int) -> None:
    """Over the whole cycle, from each of its thirds; no beacon is ever both dark and silent."""
    world = arranged({0: (0.7, 0.0)}, horizon=1000)
    world._phase[:] = start
    for step in range(1, 2 * PERIOD + 1):
        obs, *_ = move(world, 0.0, 0.0, 1)
        third = (start + step) % PERIOD * 3 // PERIOD
        seen = (obs["vision"][0] == RED).all(-1).any()
        heard = obs["hearing"][0].reshape(2, 4)[:, 0] > 0
        assert seen == (third != 0)
        assert heard.tolist() == [third != 1] * 2


def test_reward_comes_only_from_the_right_colour_or_pitch() -> None:
    """Each beacon in turn lies in the agent's way; it then lies elsewhere."""
    for task, right in (
        ("red", lambda w: w.colour == 0),
        ("green", lambda w: w.colour == 1),
        ("high", lambda w: w.band == 3),
    ):
        for i in range(6):
            world = arranged({i: (0.3, 0.0)})
            world.task[:] = world._find_source(task)
            world._gather()
            world._rule[:] = world._first_rule
            found = []
            for _ in range(8):
                obs, reward, *_, info = move(world, 1.0, 0.0, 1)
                assert (reward[0] != 0) == (info["reached"][0] >= 0) == (obs["touch"][0, 4] == 1)
                found += [(float(reward[0]), int(info["reached"][0]))] if reward[0] else []
            assert found == [(1.0 if right(world)[i] else -0.5, i)]
            assert np.hypot(world._bx[i] - 0.3, world._by[i])[0] > 0.2


def test_an_order_is_rewarded_beacon_by_beacon() -> None:
    """Red, green, blue, red again; a wrong one costs and does not change what comes next."""
    world = BeaconsVectorEnv()
    world.reset(seed=1, options={"task": "ordered"})
    for i, expected in ((0, 1), (3, -0.5), (2, -0.5), (1, 1), (4, -0.5), (5, 1), (2, -0.5), (3, 1)):
        world._bx[:], world._by[:] = -FAR, -FAR
        world._x[:] = world._y[:] = 0.0
        world._bx[i] = world._by[i] = 0.0
        _, reward, *_, info = move(world, 0.0, 0.0, 1)
        assert (reward[0], info["reached"][0]) == (expected, i)


def track(task: str, turn: float) -> Any:
    world = arranged({}, axis="dynamics", vision=False, hearing=False)
    world.task[:] = world._find_source(task)
    world._gather()
    path = []
    for _ in range(15):
        obs, *_ = move(world, 0.5, turn, 1)
        path.append([world._x[0], world._y[0], world._heading[0], *obs["touch"][0]])
    return np.array(path)


def test_a_mirrored_task_mirrors() -> None:
    """The same actions drive along the mirror image of the plain path; turns swapped, the same."""
    plain, mirrored = track("red", 0.3), track("mirrored", 0.3)
    np.testing.assert_array_equal(mirrored, plain * [1, -1, -1, 1, -1, -1, 1, 1])
    assert plain[-1, 1] > 0.1
    np.testing.assert_array_equal(track("mirrored", -0.3), plain)


@pytest.mark.parametrize("task", ["red", "slippery", "windy", "mirrored"])
def test_the_agent_moves_by_the_documented_equations(task: str) -> None:
    """Recomputed in double precision for a turning agent; touch tells the velocity."""
    d = DYNAMICS["plain" if task == "red" else task]
    v, p, h, w = np.zeros(2), np.zeros(2), 0.0, 0.0
    for row in track(task, 0.3):
        w = 0.5 * w + 0.15 * d.turn * 0.3
        h += w
        v = d.keep * v + d.thrust * 0.5 * np.array([np.cos(h), np.sin(h)]) + [d.wind, 0.0]
        p = p + v
        body = [v @ [np.cos(h), np.sin(h)], v @ [-np.sin(h), np.cos(h)]]
        np.testing.assert_allclose(row[:3], [*p, h], atol=1e-5)
        np.testing.assert_allclose(row[3:6], [body[0] / 0.11, body[1] / 0.11, w / 0.3], atol=1e-4)
    assert pytest.approx(0.11) == TOP_SPEED


def test_a_wall_stops_and_is_felt() -> None:
    world = arranged({})
    obs, *_ = move(world, 1.0, 0.0, 60)
    assert world._x[0] == 1.0
    assert obs["touch"][0].tolist() == [0.0, 0.0, 0.0, 1.0, 0.0]


def test_a_missing_sense_is_0_and_a_noisy_one_differs_a_little() -> None:
    world = BeaconsVectorEnv(axis="senses")
    seen = {}
    for task in ("red", "deaf", "blind", "noisy"):
        seen[task] = world.reset(seed=5, options={"task": task})[0]
    for name in ("vision", "hearing"):
        plain = seen["red"][name].astype(float)
        assert plain.any()
        missing = "blind" if name == "vision" else "deaf"
        assert not seen[missing][name].any()
        np.testing.assert_array_equal(seen["deaf" if name == "vision" else "blind"][name], plain)
        change = seen["noisy"][name] - plain
        assert change.any()
        assert np.abs(change).max() <= (48 if name == "vision" else 0.3)


@pytest.mark.parametrize("task", TASKS)
def test_the_expert_beats_a_random_agent_by_far_and_the_references_are_right(task: str) -> None:
    """Within 4 standard errors of 200 episodes; the senses do not matter to either agent."""
    world = BeaconsVectorEnv(200, axis="all")
    world._has = dict.fromkeys(world._has, False)  # for speed
    random, best = world.reference(task)
    rng = np.random.default_rng(0)
    for policy, expected in ((act, best), (lambda w: rng.uniform(-1, 1, (200, 2)), random)):
        world.reset(seed=3, options={"task": task})
        total = np.zeros(200)
        for _ in range(world.horizon):
            total += world.step(policy(world))[1]
        assert total.mean() == pytest.approx(expected, abs=4 * total.std() / np.sqrt(200))
    assert best > 5 > 0.2 > random


def test_the_expert_also_plays_with_discrete_actions() -> None:
    world = BeaconsVectorEnv(50, continuous=False, vision=False, hearing=False)
    world.reset(seed=0)
    total = sum(world.step(act(world))[1].mean() for _ in range(200))
    assert total > 5


def test_the_reference_is_unknown_for_other_settings() -> None:
    assert np.isfinite(BeaconsEnv(size=8, vision=False, task_cue=True).reference("red")).all()
    for change in ({"beacons": 5}, {"bands": 3}, {"horizon": 100}, {"continuous": False}):
        assert np.isnan(BeaconsEnv(**change).reference("red")).all()
    with pytest.raises(ValueError, match="unknown task 'blue'"):
        BeaconsEnv().reference("blue")


def trajectory(world: Any, steps: int = 90) -> bytes:
    """Return everything that `steps` steps of random actions show, as bytes."""
    rng = np.random.default_rng(2)
    obs, _ = world.reset(seed=11, options={"task": "noisy"})
    shown = [obs[name].tobytes() for name in sorted(obs)]
    for _ in range(steps):
        action = rng.uniform(-1, 1, world.action_space.shape).astype(np.float32)
        obs, reward, *_ = world.step(action)
        shown += [*(obs[name].tobytes() for name in sorted(obs)), np.float32(reward).tobytes()]
    return b"".join(shown)


def test_one_copy_and_a_vector_of_one_and_another_process_agree_to_the_bit() -> None:
    single = trajectory(BeaconsEnv(axis="senses"))
    assert trajectory(BeaconsVectorEnv(1, axis="senses")) == single
    program = (
        "import sys; from everloop.envs import BeaconsEnv; from test_beacons import trajectory;"
        "sys.stdout.buffer.write(trajectory(BeaconsEnv(axis='senses')))"
    )
    folder = __file__.rpartition("/")[0]
    other = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, cwd=folder
    )
    assert other.stdout == single


@pytest.mark.parametrize("axis", ["reward", "dynamics", "senses", "all"])
def test_a_world_continues_from_its_state_also_in_its_pictures(axis: Any) -> None:
    """With copies in different tasks, feedback, and episodes that end on the way.

    The expert plays, so that beacons are reached, for "ordered" in order.
    """

    def make() -> Any:
        options = {"axis": axis, "horizon": 90, "render_mode": "rgb_array"}
        return make_vec("everloop/Beacons-v0", 3, feedback=True, **options)

    first, second = make(), make()
    first.reset(seed=0)
    first.reset(options={"task": 3, "reset_mask": np.array([True, False, True])})
    for _ in range(150):
        first.step(act(first.unwrapped))
    second.reset(seed=9)
    first.unwrapped._touched[:] = True
    second.load_state_dict(first.state_dict())
    np.testing.assert_array_equal(first.unwrapped.render(), second.unwrapped.render())
    only = {"reset_mask": np.array([True, False, False])}  # the others show what they touched
    touch = [world.reset(options=only)[0]["touch"] for world in (first, second)]
    np.testing.assert_array_equal(*touch)
    for _ in range(100):
        actions = act(first.unwrapped)
        (a, reward, *_), (b, other, *_) = first.step(actions), second.step(actions)
        np.testing.assert_array_equal(reward, other)
        for name, value in a.items():
            assert value.tobytes() == b[name].tobytes()


def test_a_state_of_another_number_of_beacons_is_refused() -> None:
    small, large = BeaconsVectorEnv(beacons=3), BeaconsVectorEnv(beacons=9)
    for world in (small, large):
        world.reset(seed=0)
    with pytest.raises(ValueError, match="the state has 3 beacons; this world has 9"):
        large.load_state_dict(small.state_dict())  # type: ignore[arg-type]


def test_beacons_and_the_agent_start_apart() -> None:
    """Nobody is rewarded for standing still at first; places lie within 0.9."""
    world = BeaconsVectorEnv(2000, vision=False, hearing=False)
    world.reset(seed=0)
    x, y = np.vstack([world._x, world._bx]), np.vstack([world._y, world._by])
    assert max(np.abs(x).max(), np.abs(y).max()) <= 0.9
    apart = np.hypot(x[:, None] - x, y[:, None] - y) + 9 * np.eye(7)[..., None]
    assert apart.min() > 0.1
    assert np.median(apart.min((0, 1))) > 0.25


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"axis": "colour"}, "axis is 'colour'; choose one of reward, dynamics, senses, all"),
        ({"size": 4}, "size is 4; it must be an integer from 8 to 256"),
        ({"beacons": 2}, "beacons is 2; it must be an integer from 3 to 24"),
        ({"beacons": 6.0}, "beacons is 6.0; it must be an integer from 3 to 24"),
        ({"bands": 1}, "bands is 1; it must be an integer from 2 to 64"),
        ({"horizon": 0}, "horizon is 0; it must be an integer from 1 to 100000"),
        ({"horizon": True}, "horizon is True; it must be an integer from 1 to 100000"),
        ({"vision": "yes"}, "vision is 'yes'; it must be True or False"),
        (
            {"axis": "senses", "hearing": False},
            "axis is 'senses', but vision is True and hearing is False; its tasks need both, so "
            "set both to True or choose another axis",
        ),
        ({"render_mode": "human"}, "render_mode is 'human'; it must be 'rgb_array' or None"),
        ({"num_envs": 0}, "num_envs is 0; it must be 1 or more"),
    ],
)
def test_a_bad_argument_is_refused_in_one_line(parameters: Any, message: str) -> None:
    with pytest.raises(ValueError, match="^" + message.replace("(", r"\(") + "$"):
        BeaconsVectorEnv(**parameters)


def test_bad_actions_are_refused() -> None:
    world, choices = BeaconsVectorEnv(2), BeaconsVectorEnv(2, continuous=False)
    for env in (world, choices):
        env.reset(seed=0)
    with pytest.raises(ValueError, match=r"shape \(2,\); they must have shape \(2, 2\)"):
        world.step(np.zeros(2))
    with pytest.raises(ValueError, match="an action is nan"):
        world.step(np.full((2, 2), np.nan))
    for bad in ([0, 6], [-1, 0], [0.5, 1.0]):
        with pytest.raises(ValueError, match="each must be an integer from 0 to 5"):
            choices.step(np.array(bad))


def test_it_renders_through_gymnasium() -> None:
    """The same state gives the same picture; beacons and the agent are in it."""
    env = gym.make("everloop/Beacons-v0", render_mode="rgb_array")
    env.reset(seed=0)
    picture: Any = env.render()
    assert picture.shape == (256, 256, 3)
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(picture, env.render())
    env.step(np.ones(2, np.float32))
    assert (env.render() != picture).any()
    world: Any = env.unwrapped
    world.world._phase[:] = LIT
    picture = env.render()
    for i, colour in enumerate(world.world.colour):
        column = int((world.world._bx[i, 0] + 1.08) / 2.16 * 256)
        row = int((1.08 - world.world._by[i, 0]) / 2.16 * 256)
        assert picture[row, column].tolist() == [RED, GREEN, BLUE][colour]
    assert gym.make("everloop/Beacons-v0").unwrapped.render() is None
    pair = make_vec("everloop/Beacons-v0", 2, render_mode="rgb_array")
    pair.reset(seed=0)
    assert np.shape(pair.render()) == (2, 256, 256, 3)
