"""Evaluation of a learner equals direct computation and the scores of known agents."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from loop_helpers import (
    ConstantLogits,
    FlatNet,
    control_learner,
    mlp,
    plant,
    random_states,
    same,
    stream,
    weights,
)
from torch import Tensor, nn

from everloop.contract import RETURN, SCORE, Task
from everloop.envs import ImageStreamVectorEnv, PlantVectorEnv
from everloop.envs.data import digits, from_arrays
from everloop.loop import (
    Learner,
    NotFiniteError,
    Plan,
    Run,
    Strategy,
    SupervisedLearner,
    Training,
    evaluate,
    mean_return,
    scores,
)
from everloop.loop.evaluate import returns, score_metric


def accuracy(learner: SupervisedLearner, task: int) -> float:
    """The share of correct guesses on all test digits of `task`, from one forward pass."""
    test = digits()[1]
    rows = test[test.labels // 2 == task]
    logits = learner.module(
        {"image": torch.from_numpy(rows.inputs)[None]},
        torch.zeros(len(rows), 1),
        torch.ones(1, len(rows), dtype=torch.bool),
    )[0].prediction
    return float((logits[0].argmax(-1).numpy() == rows.labels).mean())


@pytest.fixture(scope="module")
def trained_learner() -> SupervisedLearner:
    """A learner with imperfect accuracy on all digits."""
    world = stream(32)
    learner = SupervisedLearner(mlp(hidden=12), world, Training(1e-2))
    learner.learn([0, 1, 2, 3, 4], 3200)
    return learner


@pytest.mark.parametrize("num_envs", [1, 7, 72, 100])
@pytest.mark.parametrize("episode_length", [5, 32])
@pytest.mark.parametrize("task", [0, 3])
def test_the_return_of_a_stream_is_its_accuracy(
    trained_learner: SupervisedLearner, task: int, episode_length: int, num_envs: int
) -> None:
    """The number of copies need not divide the number of examples."""
    world = stream(num_envs, split="test", episode_length=episode_length)
    expected = accuracy(trained_learner, task)
    assert 0.1 < expected < 1.0
    assert mean_return(trained_learner, world, task, seed=0) == pytest.approx(expected, rel=1e-9)
    assert scores(trained_learner, world, [], seed=0)[task] == pytest.approx(
        100 * expected, rel=1e-9
    )


def test_evaluations_are_repeatable_and_change_nothing(trained_learner: SupervisedLearner) -> None:
    world = stream(7, split="test")
    before, states = weights(trained_learner.module), random_states()
    first = scores(trained_learner, world, [], seed=3)
    world.step(np.zeros(7, np.int64))
    assert scores(trained_learner, world, [], seed=3) == first
    assert same(weights(trained_learner.module), before)
    assert random_states() == states


class LabelReader(nn.Module):
    """Reads the label from the first pixel, and adds `offset`."""

    def __init__(self, offset: int) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.tensor(float(offset)))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.one_hot(
            (x[:, 0, 0, 0] * 255 + self.offset).round().long() % 4, 4
        ).float()


def labelled_stream(num_envs: int = 3, **kwargs: Any) -> ImageStreamVectorEnv:
    """20 images of four classes, filled with their label."""
    labels = np.arange(20) % 4
    images = np.broadcast_to(labels[:, None, None], (20, 8, 8)).astype(np.uint8)
    return ImageStreamVectorEnv(
        num_envs, from_arrays(images, labels, images, labels), split="test", **kwargs
    )


def test_perfect_guesses_score_100_percent_and_wrong_ones_0() -> None:
    world = labelled_stream()
    right, wrong = (SupervisedLearner(FlatNet(LabelReader(i)), world) for i in (0, 1))
    assert scores(right, world, [], seed=0) == pytest.approx([100.0, 100.0])
    assert scores(wrong, world, [], seed=0) == [0.0, 0.0]


def test_guessing_one_label_of_a_balanced_pair_scores_50_percent() -> None:
    world = labelled_stream(label_space="within_task")
    learner = SupervisedLearner(FlatNet(ConstantLogits([0.0, 1.0])), world)
    assert scores(learner, world, [], seed=0) == pytest.approx([50.0, 50.0])


@pytest.mark.parametrize("recurrent", [False, True], ids=["feed-forward", "recurrent"])
def test_the_return_in_control_averages_one_episode_per_copy(recurrent: bool) -> None:
    """A hand-written loop takes mean actions and keeps the state until the episode ends."""
    learner, world = control_learner(recurrent), plant(5, horizon=6)
    obs, _ = world.reset(seed=9, options={"task": 2})
    state, total = learner.module.initial_state(5), np.zeros(5)  # type: ignore[operator]
    for t in range(6):
        tensors = {name: torch.from_numpy(value)[None] for name, value in obs.items()}
        with torch.no_grad():
            output, state = learner.module(tensors, state, torch.full((1, 5), t == 0))
        obs, reward, _, truncated, _ = world.step(output.prediction[0, :, :2].clamp(-1, 1).numpy())
        total += reward
    assert truncated.all()
    assert mean_return(learner, world, 2, seed=9) == pytest.approx(float(total.mean()), rel=1e-6)


def learner_with_policy(policy: Any) -> Learner:
    """A learner whose actions are `policy()`."""
    learner = control_learner()
    learner.act = lambda obs, state, start, generator=None: (policy(), state)  # type: ignore[method-assign, assignment]
    return learner


def test_random_actions_score_0_and_optimal_control_scores_1() -> None:
    copies = 400
    world = PlantVectorEnv(copies, num_tasks=2, horizon=20)
    rng = np.random.default_rng(0)
    random = scores(
        learner_with_policy(lambda: rng.uniform(-1, 1, (copies, 3)).astype(np.float32)),
        world,
        [],
        seed=0,
    )
    assert random == pytest.approx([0.0, 0.0], abs=0.05)

    def optimal() -> npt.NDArray[Any]:
        problem = world.linear_quadratic(int(world.task[0]))
        return np.clip(
            problem.act(int(world._elapsed[0]), world._x.astype(np.float64)), -1, 1
        ).astype(np.float32)

    best = scores(learner_with_policy(optimal), world, [], seed=0)
    assert best == pytest.approx([1.0, 1.0], abs=0.05)


def test_without_references_for_all_tasks_scores_are_returns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Scores and returns are not comparable, so they are never mixed."""
    learner, world = control_learner(), plant(5, horizon=6)
    known = [world.reference(task.id) for task in world.tasks]
    found = returns(learner, world, [], seed=0)
    assert score_metric(world) == SCORE
    assert scores(learner, world, [], seed=0) == [
        (G - low) / (high - low) for G, (low, high) in zip(found, known, strict=True)
    ]
    for unknown in ((np.nan, 32.0), (3.2, np.nan), (np.nan, np.nan)):
        monkeypatch.setattr(
            world, "reference", lambda task, unknown=unknown: unknown if task == 1 else known[task]
        )
        assert score_metric(world) == RETURN
        assert scores(learner, world, [], seed=0) == found


@pytest.mark.parametrize("reference", [(3.0, 3.0), (3.0, 2.0)])
def test_a_best_return_that_is_not_above_the_random_one_is_an_error(
    reference: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores would be undefined, or turned around together with all forgetting."""
    world = plant(5)
    monkeypatch.setattr(world, "reference", lambda task: reference)
    said = re.escape(f"is ({reference[0]:g}, {reference[1]:g}), a random return and the best one")
    with pytest.raises(ValueError, match=said):
        Run(control_learner(), Plan([[0]], [32], 1000), world)


class ViewRecorder(Strategy):
    """Records when the view of a task is opened and closed."""

    def __init__(self, name: str, events: list[str]) -> None:
        self.name, self.events = name, events

    @contextmanager
    def view(self, task: Task, learner: Learner) -> Iterator[None]:  # type: ignore[override]
        self.events.append(f"{self.name} opens {task.id}")
        yield
        self.events.append(f"{self.name} closes {task.id}")


def test_each_task_is_evaluated_within_the_views_of_all_strategies(
    trained_learner: SupervisedLearner,
) -> None:
    events: list[str] = []
    world = labelled_stream()
    reset = world.reset

    def recording_reset(**kwargs: Any) -> Any:
        events.append("reset")
        return reset(**kwargs)

    world.reset = recording_reset  # type: ignore[method-assign]
    scores(
        SupervisedLearner(FlatNet(LabelReader(0)), world),
        world,
        [ViewRecorder("a", events), ViewRecorder("b", events)],
        seed=0,
    )
    task_0 = ["a opens 0", "b opens 0", "reset", "b closes 0", "a closes 0"]
    assert events == [*task_0, *(event.replace("0", "1") for event in task_0)]


def test_an_infinite_observation_is_refused_with_its_name() -> None:
    learner, world = control_learner(), plant(3)
    step = world.step

    def broken(actions: Any) -> Any:
        obs, *rest = step(actions)
        return obs | {"cue": np.full_like(obs["cue"], np.inf)}, *rest

    world.step = broken
    with pytest.raises(NotFiniteError, match="'cue' holds inf"):
        mean_return(learner, world, 0, seed=0)


def test_an_evaluation_that_would_never_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "LONGEST_EPISODE", 20)
    learner = control_learner()
    mean_return(learner, plant(3, horizon=20), 0, seed=0)
    with pytest.raises(
        ValueError,
        match=r"^an episode has not ended after 20 steps of evaluation; let the world truncate it",
    ):
        mean_return(learner, plant(3, horizon=21), 0, seed=0)


def test_a_pass_that_would_never_end_is_refused() -> None:
    world = labelled_stream(1)
    learner = SupervisedLearner(FlatNet(LabelReader(0)), world)
    step = world.step

    def uncounted(actions: Any) -> Any:
        *rest, info = step(actions)
        return *rest, info | {"epoch": np.zeros(1, np.int64)}

    world.step = uncounted  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r'more steps than examples.*; count passes in info\["epo'):
        mean_return(learner, world, 0, seed=0)
