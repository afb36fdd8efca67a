"""The image stream: each pass shows every example once, and infos describe the shown image."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_helpers import CLASSES, data, infos, row_of, switch

from everloop.envs import (
    Examples,
    ImageStreamEnv,
    ImageStreamVectorEnv,
    SplitClasses,
    check_task_env,
)
from everloop.envs.data import digits, from_arrays


def answered(env: ImageStreamVectorEnv, steps: int) -> Any:
    """Return row and epoch of every answered example, (steps * num_envs, 2), in order."""
    served = infos(env, steps)
    return np.column_stack([served["index"], served["epoch"]])


def rows_of_task(source: Examples, task: int, size: int = 2) -> Any:
    return np.flatnonzero(source.labels // size == task)


def assert_passes(pairs: Any, rows: Any) -> None:
    """Each pass holds each row once; the last pass is unfinished and holds none twice."""
    passes = pairs[:, 1].max() + 1
    for epoch in range(passes):
        seen = sorted(pairs[pairs[:, 1] == epoch, 0].tolist())
        assert seen == rows.tolist() if epoch < passes - 1 else len(set(seen)) == len(seen)
        assert set(seen) <= set(rows.tolist())


sources = st.sampled_from(["train", "test"])


@given(
    copies=st.integers(1, 9),
    length=st.integers(1, 7),
    examples=st.integers(6, 60),
    task=st.integers(0, 2),
    split=sources,
    resets=st.dictionaries(st.integers(0, 60), st.lists(st.booleans(), min_size=9, max_size=9)),
)
@settings(deadline=None, max_examples=80)
def test_each_pass_shows_every_example_once(
    copies: int, length: int, examples: int, task: int, split: Any, resets: dict[int, list[bool]]
) -> None:
    """For any number of copies and length of episodes, and with resets at any step."""
    source = data(examples, examples)
    env = ImageStreamVectorEnv(copies, source, split=split, episode_length=length)
    rows = rows_of_task(source[split == "test"], task)
    assert env.examples(task) == len(rows)
    env.reset(seed=0, options={"task": task})
    pairs = []
    for step in range(4 * len(rows) // copies + 2):
        if any(mask := resets.get(step, [])[:copies]):
            env.reset(options={"reset_mask": np.array(mask)})
        elif step in resets:
            env.reset()
        pairs += answered(env, 1).tolist()
    assert len(pairs) >= 4 * len(rows)
    assert_passes(np.array(pairs), rows)


@given(
    switches=st.lists(
        st.tuples(st.integers(0, 2), st.lists(st.booleans(), min_size=3, max_size=3)),
        min_size=1,
        max_size=12,
    )
)
@settings(deadline=None, max_examples=40)
def test_a_task_switch_skips_no_example(switches: list[tuple[int, list[bool]]]) -> None:
    """An image that is still unanswered at the switch is shown again later in the same pass."""
    source = data(12)
    env = ImageStreamVectorEnv(3, source)
    env.reset(seed=0)
    pairs: list[list[int]] = []
    for task, mask in switches:
        switch(env, task, mask)
        pairs += answered(env, 1).tolist()
    for task in range(3):
        env.reset(options={"task": task})
        pairs += answered(env, 40).tolist()
    for task in range(3):
        rows = rows_of_task(source[0], task)
        assert_passes(np.array([pair for pair in pairs if pair[0] in rows]), rows)


@given(copies=st.integers(1, 8), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=30)
def test_the_order_of_examples_is_the_same_for_any_number_of_copies(copies: int, seed: int) -> None:
    """The vector is the batch: `num_envs` cuts the chain into batches and changes nothing else."""
    chains = []
    for n in (1, copies):
        env = ImageStreamVectorEnv(n, data())
        env.reset(seed=seed, options={"task": 1})
        chains.append(answered(env, 80 // n))
    np.testing.assert_array_equal(chains[0][: len(chains[1])], chains[1])


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_pass_of_both_splits_is_shuffled_anew(split: Any) -> None:
    """The order of the file must not show, because it is often that of the labels."""
    orders = []
    for seed in (0, 1):
        env = ImageStreamVectorEnv(1, data(40, 40), split=split)
        env.reset(seed=seed)
        pairs = answered(env, 2 * env.examples(0))
        orders += [pairs[pairs[:, 1] == epoch, 0].tolist() for epoch in (0, 1)]
    rows = rows_of_task(data(40, 40)[split == "test"], 0).tolist()
    assert all(sorted(order) == rows for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert all(order != rows for order in orders)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("label_space", ["global", "within_task"])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_info_and_reward_are_those_of_the_shown_image(
    split: Any, label_space: Any, size: int
) -> None:
    """Also with copies that play different tasks, each of which sees only its own classes."""
    source = data()
    given = source[split == "test"]
    env = ImageStreamVectorEnv(
        8, source, SplitClasses(size), split=split, label_space=label_space, episode_length=5
    )
    tasks = np.resize(np.arange(6 // size), 8)
    assert [task.name for task in env.tasks] == [
        "-".join(map(str, CLASSES[k : k + size])) for k in range(0, 6, size)
    ]
    actions = size if label_space == "within_task" else 6
    assert env.single_action_space == gym.spaces.Discrete(actions)
    env.reset(seed=0)
    for k in range(6 // size):
        obs, info = env.reset(options={"task": k, "reset_mask": tasks == k})
    np.testing.assert_array_equal(info["task"], tasks)
    rng, right = np.random.default_rng(0), 0.0
    for step in range(60):
        guess = rng.integers(0, actions, 8)
        before = obs["image"]
        obs, rewards, *_, info = env.step(guess)
        np.testing.assert_array_equal(row_of(before, split), info["index"])
        np.testing.assert_array_equal(before, given.inputs[info["index"]])
        position = given.labels[info["index"]]
        np.testing.assert_array_equal(position // size, tasks)
        np.testing.assert_array_equal(
            info["label"], position % size if label_space == "within_task" else position
        )
        np.testing.assert_array_equal(rewards, guess == info["label"])
        right += rewards.sum()
        if (step + 1) % 5 == 0:
            np.testing.assert_array_equal(
                [last["image"] for last in info["final_obs"]],
                obs["image"],
                "the next image is pending",
            )
    assert right > 0


@pytest.mark.parametrize(
    ("label_space", "size"), [("global", 2), ("within_task", 2), ("within_task", 3)]
)
def test_the_reference_is_the_return_of_random_and_of_correct_answers(
    label_space: Any, size: int
) -> None:
    source = data()
    env = ImageStreamVectorEnv(
        200, source, SplitClasses(size), label_space=label_space, episode_length=30
    )
    rng = np.random.default_rng(0)
    for task in env.tasks:
        random, best = env.reference(task.id)
        assert env.reference(task.name) == (random, best)
        env.reset(seed=0, options={"task": task.id})
        returns = sum(
            env.step(rng.integers(0, env.single_action_space.n, 200))[1] for _ in range(30)
        )  # type: ignore[attr-defined]
        assert abs(returns.mean() - random) < 4 * returns.std() / np.sqrt(200)
        obs, known = env.reset()[0], np.zeros(200)
        for _ in range(30):
            truth = source[0].labels[row_of(obs["image"])]
            obs, rewards, *_ = env.step(truth % size if label_space == "within_task" else truth)
            known += rewards
        assert (known == best).all()
    with pytest.raises(ValueError, match="unknown task 'nine'"):
        env.reference("nine")


def test_a_stream_with_one_possible_answer_keeps_the_contract() -> None:
    """Random and correct answers are then the same, so the score must not divide by zero."""
    check_task_env(
        ImageStreamEnv(data=data(), task_split=SplitClasses(1), label_space="within_task")
    )


@pytest.mark.parametrize("channels", [None, 1, 3])
def test_given_images_are_shown_unchanged(channels: int | None) -> None:
    """(N, H, W) or (N, H, W, C), with sides of any length, and labels in lists or arrays."""
    shape = (9, 14) if channels is None else (9, 14, channels)
    images = np.random.default_rng(0).integers(0, 256, (6, *shape), np.uint8)
    source = from_arrays(images, CLASSES.tolist(), images[:3], CLASSES[[0, 2, 4]].astype(np.uint8))
    env = ImageStreamEnv(data=source, split="test")
    assert env.observation_space["image"] == gym.spaces.Box(
        0, 255, (9, 14, channels or 1), np.uint8
    )  # type: ignore[index]
    for k in range(3):
        obs, _ = env.reset(options={"task": k})
        np.testing.assert_array_equal(obs["image"], images[k].reshape(9, 14, -1))
    check_task_env(ImageStreamEnv(data=source))


def test_without_data_the_stream_shows_the_digits() -> None:
    env = ImageStreamVectorEnv(355, split="test", task_split=SplitClasses(10))
    obs, _ = env.reset(seed=0)
    test = digits()[1]
    _, rewards, *_, info = env.step(np.zeros(355, int))
    assert sorted(info["index"]) == list(range(355))
    np.testing.assert_array_equal(obs["image"], test.inputs[info["index"]])
    np.testing.assert_array_equal(rewards, test.labels[info["index"]] == 0)
