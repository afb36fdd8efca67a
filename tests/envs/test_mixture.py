"""Mixtures: how many foreign and altered examples a pass holds, where, and how infos mark them."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_helpers import infos, stream

from everloop.envs import PRESETS, ImageStreamVectorEnv, Mixture, SplitClasses
from everloop.envs.corruptions import IMAGE_ALTERATIONS, TEXT_ALTERATIONS
from everloop.envs.data import digits
from everloop.envs.mixture import EPOCH, INDEX, KEY, OOD, ORIGIN

ROWS = [np.arange(k * 1000, k * 1000 + n) for k, n in enumerate((300, 200, 500, 100))]
ratios = st.floats(0, 0.3)


@given(
    blur=ratios,
    other=ratios,
    ood=ratios,
    task=st.integers(0, 3),
    epoch=st.integers(0, 3),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=80)
def test_a_pass_has_each_own_example_once_and_the_given_ratios(
    blur: float, other: float, ood: float, task: int, epoch: int, seed: int
) -> None:
    plan = Mixture(blur, other, ood).draw_pass(seed, ROWS, [task], epoch, alterations=3)
    clean = plan[OOD] == 0
    own = clean & (plan[ORIGIN] == task)
    assert sorted(plan[INDEX, own]) == ROWS[task].tolist()
    assert all(
        row in ROWS[origin] for row, origin in zip(plan[INDEX], plan[ORIGIN], strict=True)
    ), "every index must be of its task"
    n = plan.shape[1]
    wanted = {"next": blur if task < 3 else 0.0, "past": other if task > 0 else 0.0, "ood": ood}
    found = {
        "next": clean & (plan[ORIGIN] == task + 1),
        "past": clean & (plan[ORIGIN] < task),
        "ood": ~clean,
    }
    for name, ratio in wanted.items():
        assert abs(found[name].sum() - ratio * n) <= 1.5, name  # counts are rounded
    assert own.sum() + sum(mask.sum() for mask in found.values()) == n
    assert (plan[EPOCH] == epoch).all()
    assert (plan[ORIGIN, ~clean] == task).all()
    assert set(plan[OOD, ~clean]) <= {1, 2, 3}
    assert (plan[KEY, clean] == 0).all()


def test_past_tasks_are_sampled_in_proportion_to_their_sizes() -> None:
    plan = Mixture(other_task_ratio=0.5).draw_pass(0, ROWS, [2], 0, 1)
    assert [(plan[ORIGIN] == k).sum() for k in range(4)] == [300, 200, 500, 0]


def test_order_defines_the_next_and_the_past_tasks() -> None:
    mixture = Mixture(0.2, 0.2, order=[3, 1, 0])
    neighbours = {
        task: set(mixture.draw_pass(0, ROWS, [task], 0, 1)[ORIGIN]) for task in (3, 1, 0, 2)
    }
    assert neighbours == {3: {3, 1}, 1: {1, 0, 3}, 0: {0, 3, 1}, 2: {2}}


@given(
    ratios=st.tuples(ratios, ratios, ratios),
    gradual=st.floats(0, 1),
    passes=st.integers(1, 3),
    order=st.none() | st.lists(st.integers(0, 3), max_size=6),
    tasks=st.sets(st.integers(0, 3), min_size=1, max_size=2),
    epoch=st.integers(0, 9),
)
@settings(deadline=None, max_examples=80)
def test_the_length_of_a_pass_is_known_without_drawing_it(
    ratios: tuple[float, float, float],
    gradual: float,
    passes: int,
    order: list[int] | None,
    tasks: set[int],
    epoch: int,
) -> None:
    mixture = Mixture(*ratios, gradual, passes, order=order)
    drawn = mixture.draw_pass(0, ROWS, sorted(tasks), epoch, 2)
    assert mixture.pass_length([len(rows) for rows in ROWS], sorted(tasks), epoch) == drawn.shape[1]


@pytest.mark.parametrize("passes", [1, 2])
def test_a_task_that_returns_has_the_neighbours_of_each_visit(passes: int) -> None:
    """Order 0 0 1 0 2 1: next task of each visit to 0, past tasks; none is its own neighbour."""
    blur, other = Mixture(0.2, passes=passes), Mixture(0.0, 0.2, passes=passes)
    expected: dict[int, list[tuple[set[int], set[int]]]] = {
        0: [(set(), set()), ({1}, set()), ({2}, {1})],
        1: [({0}, {0}), (set(), {0, 2})],
        2: [({1}, {0, 1})],
        3: [(set(), set())],
    }
    for task, visits in expected.items():
        for epoch in range(passes * (len(visits) + 1)):  # later passes belong to the last visit
            found = [
                set(
                    replace(mixture, order=[0, 0, 1, 0, 2, 1]).draw_pass(0, ROWS, [task], epoch, 1)[
                        ORIGIN
                    ]
                )
                for mixture in (blur, other)
            ]
            following, past = visits[min(epoch // passes, len(visits) - 1)]
            assert found == [following | {task}, past | {task}], (task, epoch)


def test_each_visit_of_a_task_that_returns_blends_into_its_own_neighbours() -> None:
    """Half of the examples at each end of a visit are the neighbour's there."""
    mixture = Mixture(gradual=0.2, passes=2, order=[1, 0, 2, 0, 3])
    for visit, (before, after) in enumerate([(1, 2), (2, 3)]):
        origins = np.concatenate(
            [mixture.draw_pass(0, ROWS, [0], 2 * visit + e, 1)[ORIGIN] for e in range(2)]
        )
        assert set(origins) == {0, before, after}
        assert 0.35 < (origins[:20] == before).mean() < 0.6
        assert 0.35 < (origins[-20:] == after).mean() < 0.6
        assert (origins[100:-100] == 0).all()


@pytest.mark.parametrize("passes", [1, 4])
@pytest.mark.parametrize("gradual", [0.5, 1.0])
def test_a_gradual_change_grows_linearly_to_one_half_at_the_boundary(
    gradual: float, passes: int
) -> None:
    """The neighbours' share at each position of the visit, over many seeds, against the line."""
    bins = 20
    after, before = np.zeros(bins), np.zeros(bins)
    total = np.zeros(bins)
    for seed in range(60):
        visit = np.concatenate(
            [
                Mixture(gradual=gradual, passes=passes).draw_pass(seed, ROWS, [2], e, 1)
                for e in range(passes)
            ],
            axis=1,
        )
        own = np.cumsum(visit[ORIGIN] == 2) / (500 * passes)  # position, in own examples
        place = np.minimum((own * bins).astype(int), bins - 1)
        total += np.bincount(place, minlength=bins)
        after += np.bincount(place, visit[ORIGIN] == 3, minlength=bins)
        before += np.bincount(place, visit[ORIGIN] == 1, minlength=bins)
    v = (np.arange(bins) + 0.5) / bins
    p = 0.5 * np.clip(1 - (1 - v) / (gradual / 2), 0, 1)
    q = p[::-1]
    scale = 1 / (1 - p) + 1 / (1 - q) - 1  # own examples and both neighbours'
    np.testing.assert_allclose(after / total, p / (1 - p) / scale, atol=0.03)
    np.testing.assert_allclose(before / total, q / (1 - q) / scale, atol=0.03)
    assert abs(after[-1] / total[-1] - 0.5) < 0.05 + 1 / bins / gradual


def test_presets_have_the_published_ratios() -> None:
    assert {name: tuple(values.values()) for name, values in PRESETS.items()} == {
        "easy": (0.0, 0.0, 0.0),
        "moderate": (0.1, 0.05, 0.05),
        "hard": (0.2, 0.1, 0.1),
    }
    assert all(
        list(values) == ["blur_ratio", "other_task_ratio", "ood_ratio"]
        for values in PRESETS.values()
    )


@pytest.mark.parametrize("preset", PRESETS)
def test_infos_describe_the_shown_examples(preset: str) -> None:
    """Label, index, task, and whether it was altered; the observation holds only the image."""
    source = digits()
    env = ImageStreamVectorEnv(8, source, mixture=PRESETS[preset])
    env.reset(seed=0, options={"task": 2})
    keys = ("ood", "index", "origin", "leaked", "label")
    kept: dict[str, list[Any]] = {key: [] for key in ("image", *keys)}
    obs = env.reset()[0]
    for _ in range(env.examples(2) // 8):
        kept["image"].append(obs["image"])
        obs, *_, info = env.step(np.zeros(8, int))
        for key in keys:
            kept[key].append(info[key])
    got = {key: np.concatenate(values) for key, values in kept.items()}
    np.testing.assert_array_equal(got["label"], source[0].labels[got["index"]])
    np.testing.assert_array_equal(got["origin"], got["label"] // 2)
    np.testing.assert_array_equal(got["leaked"], got["origin"] != 2)
    altered = (got["image"] != source[0].inputs[got["index"]]).any((1, 2, 3))
    np.testing.assert_array_equal(altered, got["ood"])
    ratios = PRESETS[preset]
    for name, mask in (
        ("blur_ratio", got["origin"] == 3),
        ("other_task_ratio", got["origin"] < 2),
        ("ood_ratio", got["ood"]),
    ):
        assert abs(mask.mean() - ratios[name]) < 0.01
    assert set(env.single_observation_space.spaces) == {"image"}  # type: ignore[attr-defined]


def test_the_test_split_is_always_clean() -> None:
    env = stream(4, split="test", mixture=PRESETS["hard"], seed=0)
    served = infos(env, 10)
    assert not served["ood"].any()
    assert not served["leaked"].any()


def test_the_cue_is_the_task_of_the_shown_example() -> None:
    env = stream(4, task_cue=True, label_space="within_task", mixture=Mixture(0.3, 0.3), seed=0)
    obs, _ = env.reset(options={"task": 1})
    for _ in range(20):
        cue = obs["cue"].argmax(-1)
        obs, *_, info = env.step(np.zeros(4, int))
        np.testing.assert_array_equal(cue, info["origin"])


def test_ood_data_replaces_examples() -> None:
    other = np.full((3, 8, 8, 1), 7, np.uint8) + np.arange(3, dtype=np.uint8)[:, None, None, None]
    env = stream(
        4, examples=200, mixture=Mixture(ood_ratio=0.5, ood=["other"]), ood_data=other, seed=0
    )
    obs = env.reset()[0]
    seen = set()
    for _ in range(30):
        shown = obs["image"]
        obs, *_, info = env.step(np.zeros(4, int))
        flat = shown.reshape(4, -1)
        np.testing.assert_array_equal((flat == flat[:, :1]).all(1), info["ood"])
        seen |= set(flat[info["ood"], 0].tolist())
    assert seen == {7, 8, 9}


@pytest.mark.parametrize("name", IMAGE_ALTERATIONS)
def test_image_alterations_keep_the_shape_and_depend_only_on_the_generator(
    name: str,
) -> None:
    image = np.random.default_rng(0).integers(40, 200, (9, 12, 3), np.uint8)
    a, b = (IMAGE_ALTERATIONS[name](image, np.random.default_rng(1)) for _ in range(2))
    assert (a.shape, a.dtype) == (image.shape, image.dtype)
    np.testing.assert_array_equal(a, b)
    assert (a != image).mean() > 0.15
    assert not np.shares_memory(a, image)


def test_each_image_alteration_has_its_statistics() -> None:
    rng = np.random.default_rng(0)
    flat, image = np.full((60, 60, 1), 128, np.uint8), rng.integers(0, 256, (60, 60, 1), np.uint8)
    noisy = IMAGE_ALTERATIONS["gaussian-noise"](flat, rng).astype(float)
    assert abs(noisy.std() - 50) < 3
    hit = IMAGE_ALTERATIONS["impulse-noise"](flat, rng)
    assert abs((hit != 128).mean() - 0.2) < 0.03
    assert set(np.unique(hit)) == {0, 128, 255}
    np.testing.assert_array_equal(IMAGE_ALTERATIONS["inverted"](image, rng), 255 - image)
    assert abs(IMAGE_ALTERATIONS["low-contrast"](image, rng).std() / image.std() - 0.25) < 0.01
    assert IMAGE_ALTERATIONS["blur"](image, rng).std() < 0.3 * image.std()
    counts = np.bincount(
        IMAGE_ALTERATIONS["noise"](np.zeros((200, 200, 1), np.uint8), rng).ravel(), minlength=256
    )
    assert (abs(counts - 156.25) < 6 * 12.5).all()


def test_each_text_alteration_has_its_statistics() -> None:
    rng = np.random.default_rng(0)
    tokens = np.concatenate([rng.permutation(np.arange(1, 401)), np.zeros(100, int)]).astype(
        np.int32
    )
    shuffled, dropped, noise = (
        TEXT_ALTERATIONS[name](tokens, rng) for name in ("shuffled", "dropped", "noise")
    )
    assert sorted(shuffled) == sorted(tokens)
    assert (shuffled != tokens).any()
    assert abs((dropped[:400] == 0).mean() - 0.3) < 0.1
    np.testing.assert_array_equal(dropped[dropped > 0], tokens[dropped > 0])
    for altered in (shuffled, dropped, noise):
        assert altered.dtype == np.int32
        assert (altered[400:] == 0).all(), "padding must stay padding"
    assert (noise[:400] > 0).all()
    assert (noise != tokens).mean() > 0.7


def test_the_position_in_a_pass_is_uncorrelated_with_what_is_shown() -> None:
    """With label, index, task and alteration, within 4 standard errors of 0."""
    env = ImageStreamVectorEnv(1, task_split=SplitClasses(5), mixture=PRESETS["hard"])
    n, correlations = env.examples(1), []
    for seed in range(8):
        env.reset(seed=seed, options={"task": 1})
        served = infos(env, n)
        place = np.arange(n)
        correlations.append(
            [
                np.corrcoef(place, served[key].astype(float))[0, 1]
                for key in ("label", "index", "leaked", "ood")
            ]
        )
    assert (np.abs(np.mean(correlations, 0)) < 4 / np.sqrt(8 * n)).all()
