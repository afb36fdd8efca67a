"""`from_tasks` joins data sets into one, each of which becomes a task."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everloop.envs import ByColumn, ImageStreamVectorEnv
from everloop.envs.data import Examples, from_tasks


def random_examples(
    rows: int, classes: tuple[str, ...], seed: int = 0, side: int = 8, **more: Any
) -> Examples:
    rng = np.random.default_rng(seed)
    labels = np.resize(rng.permutation(len(classes)), rows)
    return Examples(rng.integers(0, 256, (rows, side, side, 1), np.uint8), labels, classes, **more)


@given(
    st.lists(
        st.tuples(
            st.integers(1, 9),
            st.lists(st.sampled_from("abcdef"), min_size=1, max_size=4, unique=True),
        ),
        min_size=1,
        max_size=4,
    )
)
@settings(deadline=None)
def test_each_example_keeps_its_image_and_class_and_gets_its_task(
    sets: list[tuple[int, list[str]]],
) -> None:
    tasks = {
        f"t{i}": (random_examples(n, tuple(names), i), random_examples(n + 1, tuple(names), i + 50))
        for i, (n, names) in enumerate(sets)
    }
    for split, joined in enumerate(from_tasks(tasks)):
        start = 0
        for name, pair in tasks.items():
            own = pair[split]
            rows = slice(start, start := start + len(own))
            np.testing.assert_array_equal(joined.inputs[rows], own.inputs)
            names = [joined.classes[i] for i in joined.labels[rows]]
            assert names == [own.classes[i] for i in own.labels]
            assert set(joined.columns["task"][rows]) == {name}
        assert start == len(joined)


def test_the_data_sets_become_tasks_in_the_given_order() -> None:
    tasks = {
        "digits": (random_examples(8, ("0", "1")), random_examples(4, ("0", "1"))),
        "clothes": (random_examples(6, ("shoe", "hat")), random_examples(4, ("shoe", "hat"))),
    }
    env: Any = ImageStreamVectorEnv(2, from_tasks(tasks), ByColumn("task", order=list(tasks)))
    assert [task.name for task in env.tasks] == ["digits", "clothes"]
    assert env.single_action_space.n == 4
    assert (env.examples(0), env.examples(1)) == (8, 6)


def test_common_columns_and_tags_are_kept() -> None:
    columns = {"by": np.array(["x"] * 3), "at": np.array(["y"] * 3)}
    tagged = Examples(
        np.array([[1, 0]] * 3, np.int32),
        np.array([[1, -1]] * 3),
        ("O", "B-a"),
        columns,
        vocabulary_size=5,
    )
    other = Examples(
        np.array([[2, 3]] * 3, np.int32),
        np.array([[0, 1]] * 3),
        ("B-b", "O"),
        {"by": np.array(["z"] * 3)},
        vocabulary_size=9,
    )
    train, _ = from_tasks({"one": (tagged, tagged), "two": (other, other)})
    assert train.classes == ("O", "B-a", "B-b")
    assert train.labels.tolist() == [[1, -1]] * 3 + [[2, 0]] * 3
    assert train.vocabulary_size == 9
    assert {name: sorted(set(column)) for name, column in train.columns.items()} == {
        "by": ["x", "z"],
        "task": ["one", "two"],
    }


@pytest.mark.parametrize(
    ("tasks", "line"),
    [
        ({}, r"^tasks is empty; give at least one data set, name -> \(train, test\)$"),
        (
            {
                "a": (random_examples(2, ("x",)), random_examples(2, ("x",))),
                "b": (random_examples(2, ("x",), side=9), random_examples(2, ("x",))),
            },
            (
                r"^examples of 'b' are uint8 of shape \(9, 9, 1\) each; they must be uint8 of "
                r"shape \(8, 8, 1\), as in 'a'$"
            ),
        ),
        (
            {"a": (random_examples(2, ("x",)), random_examples(2, ("y",)))},
            r"^the test classes of 'a' are \['y'\]; they must be those of training, \['x'\]$",
        ),
    ],
)
def test_data_sets_that_do_not_fit_together_are_refused(tasks: Any, line: str) -> None:
    with pytest.raises(ValueError, match=line):
        from_tasks(tasks)
