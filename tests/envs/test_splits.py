"""Task splits: which examples and classes each task has, and how it shows them."""

from typing import Any

import numpy as np
import pytest
import scipy.stats
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import rotate
from stream_helpers import data, infos, row_of

from everloop.envs import (
    ByColumn,
    Examples,
    IBlurry,
    ImageStreamVectorEnv,
    Permuted,
    Rotated,
    SplitClasses,
    TaskSplit,
    TextStreamVectorEnv,
)
from everloop.envs.data import digits

SPACES: Any = st.sampled_from(["global", "within_task"])


def domains(shared: bool) -> tuple[Examples, Examples]:
    """Return texts of three domains, with two shared classes, or with 2, 1 and 3 of their own."""
    rng = np.random.default_rng(0)
    parts = []
    for n in (60, 30):
        domain = np.resize([0, 1, 2], n)
        own = np.array([[0, 1, 1], [2, 2, 2], [3, 4, 5]])
        labels = (
            np.resize(rng.permutation([0, 1]), n)
            if shared
            else own[domain, np.resize([0, 0, 0, 1, 1, 1, 2, 2, 2], n)]
        )
        tokens = rng.integers(1, 50, (n, 4)).astype(np.int32)
        parts.append(
            Examples(
                tokens,
                labels,
                [f"c{i}" for i in range(2 if shared else 6)],
                {"domain": np.array(["x", "z", "y"])[domain]},
                50,
            )
        )
    return parts[0], parts[1]


@given(
    size=st.sampled_from([1, 2, 3, 6]),
    seed=st.none() | st.integers(0, 9),
    split=st.sampled_from(["train", "test"]),
    label_space=SPACES,
)
@settings(deadline=None, max_examples=40)
def test_shown_examples_belong_to_their_split_and_task(
    size: int, seed: int | None, split: Any, label_space: Any
) -> None:
    source = data(60, 24)
    own = source[split == "test"]
    env = ImageStreamVectorEnv(
        4, source, SplitClasses(size, seed), split=split, label_space=label_space
    )
    classes: list[str] = []
    for task in env.tasks:
        obs, _ = env.reset(seed=1, options={"task": task.id})
        shown = [row_of(obs["image"], split)]
        seen = []
        for _ in range(2 * env.examples(task.id) // 4):
            obs, *_, info = env.step(np.zeros(4, int))
            np.testing.assert_array_equal(info["index"], shown[-1])
            shown.append(row_of(obs["image"], split))
            names = [own.classes[c] for c in own.labels[info["index"]]]
            assert set(names) <= set(task.params["classes"])
            expected = (
                [own.classes.index(n) for n in names]
                if label_space == "global"
                else [task.params["classes"].index(n) for n in names]
            )
            np.testing.assert_array_equal(info["label"], expected)
            seen += names
        assert set(seen) == set(task.params["classes"])
        classes += task.params["classes"]
    assert sorted(classes) == sorted(own.classes)


def test_groups_name_their_classes_by_name_or_number() -> None:
    env = ImageStreamVectorEnv(
        1,
        data(60),
        SplitClasses(groups=[["13", 0], ["5"], ["13", "2", "11"]]),
        label_space="within_task",
    )
    assert [task.params["classes"] for task in env.tasks] == [["13", "2"], ["5"], ["13", "2", "11"]]
    assert env.single_action_space.n == 3  # type: ignore[attr-defined]
    env.reset(seed=0, options={"task": 2})
    served = infos(env, env.examples(2))
    names = np.array(data(60)[0].classes)[data(60)[0].labels[served["index"]]]
    np.testing.assert_array_equal(np.array(["13", "2", "11"])[served["label"]], names)


def test_a_string_in_a_group_is_a_name_before_it_is_a_number() -> None:
    """The classes are 2, 3, 5, 7, 11, 13: "2" is the class 2, and "0" the first one."""
    world = ImageStreamVectorEnv(1, data(60), SplitClasses(groups=[["2", "3"], ["1", "4"]]))
    assert [task.name for task in world.tasks] == ["2-3", "3-11"]


def test_only_the_classes_of_the_groups_are_told_apart() -> None:
    split = SplitClasses(groups=[["13"], ["5", "13"]])
    world = ImageStreamVectorEnv(1, data(60), split)
    assert world.single_action_space == spaces.Discrete(2)
    for task, expected in ((0, {"13": 1}), (1, {"5": 0, "13": 1})):
        world.reset(seed=0, options={"task": task})
        served = infos(world, world.examples(task))
        names = np.array(data(60)[0].classes)[data(60)[0].labels[served["index"]]]
        assert dict(zip(names.tolist(), served["label"].tolist(), strict=True)) == expected


def test_tasks_with_the_same_classes_have_different_names() -> None:
    env = ImageStreamVectorEnv(1, data(60), SplitClasses(groups=[[0, 1], [0, 1], [2]]))
    assert [task.name for task in env.tasks] == ["2-3-0", "2-3-1", "5"]


@pytest.mark.parametrize("label_space", ["global", "within_task"])
@pytest.mark.parametrize("shared", [True, False])
def test_each_value_of_a_column_is_a_task(shared: bool, label_space: Any) -> None:
    source = domains(shared)
    env = TextStreamVectorEnv(3, source, ByColumn("domain"), label_space=label_space)
    assert [task.name for task in env.tasks] == ["x", "y", "z"]
    pairs: dict[tuple[str, str], set[int]] = {}
    for task in env.tasks:
        env.reset(seed=0, options={"task": task.id})
        served = infos(env, -(-env.examples(task.id) // 3))
        assert set(source[0].columns["domain"][served["index"]]) == {task.name}
        for index, label in zip(served["index"], served["label"], strict=True):
            pairs.setdefault((task.name, source[0].classes[source[0].labels[index]]), set()).add(
                int(label)
            )
    assert all(len(labels) == 1 for labels in pairs.values())
    numbers = {pair: labels.pop() for pair, labels in pairs.items()}
    if label_space == "global" or shared:
        assert all(numbers[domain, c] == int(c[1]) for domain, c in numbers), (
            "a class must have the same label in all tasks"
        )
    else:
        assert numbers == {
            ("x", "c0"): 0,
            ("x", "c1"): 1,
            ("z", "c2"): 0,
            ("y", "c3"): 0,
            ("y", "c4"): 1,
            ("y", "c5"): 2,
        }


def test_a_class_without_training_examples_is_one_to_guess_and_a_task_without_any_is_an_error() -> (
    None
):
    """The test split has class b in domain x, and a domain z, which the train split both lacks."""

    def texts(labels: list[int], of: list[str]) -> Examples:
        inputs = np.ones((len(labels), 3), np.int32)
        return Examples(inputs, np.array(labels), ("a", "b", "c"), {"domain": np.array(of)}, 5)

    train = texts([0, 2], ["x", "y"])
    test = texts([0, 1, 2], ["x", "x", "y"])
    for label_space, expected in (("global", {0, 1}), ("within_task", {0, 1})):
        env = TextStreamVectorEnv(1, (train, test), ByColumn("domain"), "test", label_space)  # type: ignore[arg-type]
        env.reset(seed=0, options={"task": "x"})
        assert set(infos(env, 2)["label"].tolist()) == expected
        assert env.single_action_space.n == (3 if label_space == "global" else 2)  # type: ignore[attr-defined]
    more = texts([0, 1, 2, 0], ["x", "x", "y", "z"])
    with pytest.raises(ValueError, match=r"task 2 \(z\) has no example in the train split; leave"):
        TextStreamVectorEnv(1, (train, more), ByColumn("domain"))
    left_out = TextStreamVectorEnv(1, (train, more), ByColumn("domain", order=["x", "y"]), "test")
    assert [task.name for task in left_out.tasks] == ["x", "y"]


@pytest.mark.parametrize(("shared", "new"), [(True, False), (False, True)])
def test_the_metric_says_whether_each_task_has_new_classes(shared: bool, new: bool) -> None:
    for label_space, expected in (("global", new), ("within_task", False)):
        env = TextStreamVectorEnv(1, domains(shared), ByColumn("domain"), label_space=label_space)  # type: ignore[arg-type]
        assert env.metric(0).new_classes == expected
    assert ImageStreamVectorEnv(1, data(40), Permuted(2)).metric(0).new_classes
    overlapping = SplitClasses(groups=[[0, 1], [1, 2]])
    assert not ImageStreamVectorEnv(1, data(60), overlapping).metric(0).new_classes


def test_order_selects_and_sorts_a_columns_tasks() -> None:
    env = TextStreamVectorEnv(1, domains(True), ByColumn("domain", order=["z", "x"]))
    assert [task.name for task in env.tasks] == ["z", "x"]


@pytest.mark.parametrize("task_split", [Permuted(3, seed=5), Rotated(3)])
@pytest.mark.parametrize("label_space", ["global", "within_task"])
def test_each_permuted_or_rotated_task_has_all_examples(
    task_split: TaskSplit, label_space: Any
) -> None:
    env = ImageStreamVectorEnv(5, data(40), task_split, label_space=label_space)
    for k in range(3):
        env.reset(seed=0, options={"task": k})
        served = infos(env, 8)
        assert sorted(served["index"]) == list(range(40))
        np.testing.assert_array_equal(
            served["label"],
            data(40)[0].labels[served["index"]] + (6 * k if label_space == "global" else 0),
        )


@pytest.mark.parametrize("same", [True, False])
def test_permuted_tasks_have_a_draw_of_the_training_examples(same: bool) -> None:
    train, test = data(40)

    def drawn(seed: int) -> list[set[int]]:
        made = Permuted(3, seed, examples_per_task=15, same_examples=same).assign(train, test)
        assert all(len(rows) == len(set(rows)) == 15 and max(rows) < 40 for rows in made.train)
        assert all((rows == np.arange(len(test))).all() for rows in made.test)
        return [set(rows.tolist()) for rows in made.train]

    draws = drawn(5)
    assert draws == drawn(5)
    assert len({frozenset(rows) for rows in draws}) == (1 if same else 3)
    assert not any(draw in draws for draw in drawn(6))
    env = ImageStreamVectorEnv(5, (train, test), Permuted(3, 5, 15, same))
    for k, rows in enumerate(draws):
        env.reset(seed=0, options={"task": k})
        assert sorted(infos(env, 3)["index"]) == sorted(rows)
    for bad in (0, 41):
        with pytest.raises(ValueError, match=f"^examples_per_task is {bad}; it must be 1 to 40$"):
            Permuted(3, examples_per_task=bad).assign(train, test)


def test_a_draw_of_examples_changes_no_permutation() -> None:
    whole, drawn = Permuted(3, 5).assign(*data(40)), Permuted(3, 5, 15).assign(*data(40))
    assert whole.view is not None
    assert drawn.view is not None
    image = data(40)[0].inputs[:1]
    for k in range(3):
        np.testing.assert_array_equal(whole.view(image, k), drawn.view(image, k))


def test_each_task_has_one_fixed_permutation_of_the_pixels() -> None:
    rng = np.random.default_rng(0)
    image = rng.permutation(256)[:192].reshape(1, 8, 8, 3).astype(np.uint8)
    source = Examples(image, np.zeros(1, np.int64), ["a"])
    shown = []
    for seed in (5, 5, 6):
        env = ImageStreamVectorEnv(2, (source, source), Permuted(4, seed))
        views = np.stack([env.reset(seed=0, options={"task": k})[0]["image"] for k in range(4)])
        np.testing.assert_array_equal(views[:, 0], views[:, 1])
        np.testing.assert_array_equal(views[0, 0], image[0])
        pixels = {tuple(pixel) for pixel in image[0].reshape(-1, 3)}
        assert all(
            {tuple(pixel) for pixel in view[0].reshape(-1, 3)} == pixels for view in views
        ), "the channels of a pixel must stay together"
        shown.append(views)
    assert len({view.tobytes() for view in shown[0]}) == 4
    np.testing.assert_array_equal(shown[0], shown[1])
    assert not np.array_equal(shown[0], shown[2])


def test_quarter_turns_are_exact_and_other_angles_match_scipy() -> None:
    source = digits()
    angles = [0, 90, 180, 270, 37.5]
    env = ImageStreamVectorEnv(50, source, Rotated(angles=angles))
    for k, angle in enumerate(angles):
        obs, _ = env.reset(seed=k, options={"task": k})
        *_, info = env.step(np.zeros(50, int))
        original = source[0].inputs[info["index"]]
        if angle % 90 == 0:
            np.testing.assert_array_equal(
                obs["image"], np.rot90(original, angle // 90, axes=(1, 2))
            )
        else:
            turned = [
                rotate(image.astype(float), angle, reshape=False, order=1, mode="constant")
                for image in original
            ]
            inner = (slice(None), slice(2, 6), slice(2, 6))  # scipy treats the border differently
            np.testing.assert_allclose(
                obs["image"].astype(float)[inner], np.array(turned)[inner], atol=0.51
            )


def test_random_angles_are_uniform_and_fixed_by_the_seed() -> None:
    first, again, other = (Rotated(400, seed=seed).assign(*digits()).tasks for seed in (1, 1, 2))
    assert first == again != other
    angles = np.array([task.params["angle"] for task in first])
    assert scipy.stats.kstest(angles / 180, "uniform").pvalue > 0.01
    assert [task.params["angle"] for task in Rotated(4).assign(*digits()).tasks] == [0, 45, 90, 135]


@given(disjoint=st.floats(0, 1), blur=st.floats(0, 1), seed=st.integers(0, 5))
@settings(deadline=None, max_examples=25)
def test_i_blurry_spreads_only_the_given_share_of_blurry_classes(
    disjoint: float, blur: float, seed: int
) -> None:
    train, test = digits()
    made = IBlurry(5, disjoint, blur, seed).assign(train, test)
    assert sorted(np.concatenate(made.train)) == list(range(len(train))), (
        "every example must be in one task"
    )
    home = np.array(
        [next(k for k, rows in enumerate(made.test) if c in test.labels[rows]) for c in range(10)]
    )
    place = np.zeros(len(train), np.int64)
    for k, rows in enumerate(made.train):
        place[rows] = k
    blurry = 0
    for c in range(10):
        own = place[train.labels == c]
        moved = own[own != home[c]]
        if len(moved):
            blurry += 1
            assert len(moved) == round(blur * len(own))
            counts = np.bincount(moved, minlength=5)[np.arange(5) != home[c]]
            assert counts.max() - counts.min() <= 1, (
                "moved examples must be spread evenly over the other tasks"
            )
    assert blurry == (10 - round(disjoint * 10) if round(blur * 140) else 0)
    assert sorted(np.concatenate(made.test)) == list(range(len(test)))


def test_i_blurry_tasks_share_one_global_label_space() -> None:
    env = ImageStreamVectorEnv(10, task_split=IBlurry(5, 0.5, 0.3))
    for k in range(5):
        env.reset(seed=0, options={"task": k})
        served = infos(env, env.examples(k) // 10)
        np.testing.assert_array_equal(served["label"], digits()[0].labels[served["index"]])


def test_a_split_as_a_dictionary_equals_the_object() -> None:
    a = ImageStreamVectorEnv(4, data(60), Permuted(3, seed=2))
    b = ImageStreamVectorEnv(4, data(60), {"kind": "permuted", "num_tasks": 3, "seed": 2})
    for env in (a, b):
        env.reset(seed=0, options={"task": 2})
    np.testing.assert_array_equal(
        a.step(np.zeros(4, int))[0]["image"], b.step(np.zeros(4, int))[0]["image"]
    )
