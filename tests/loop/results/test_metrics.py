"""Measures of continual learning, compared with numbers computed by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from result_helpers import finished_result

from everloop.contract import SCORE, Metric
from everloop.loop import Evaluation, Result
from everloop.loop.results.metrics import (
    anytime_score,
    average_incremental_score,
    average_score,
    backward_transfer,
    forgetting,
    forward_transfer,
    learning_accuracy,
    min_accuracy,
    one_step_backward_transfer,
    task_forgetting,
    worst_case_accuracy,
)

Matrix = list[list[float]]

S: Matrix = [[0.9, 0.1, 0.2], [0.7, 0.8, 0.3], [0.5, 0.9, 0.6]]
BEFORE = [0.0, 0.05, 0.1]
IN_ORDER = [[0], [1], [2]]


def test_average_score_is_the_mean_of_the_last_row() -> None:
    assert average_score(S, IN_ORDER) == pytest.approx((0.5 + 0.9 + 0.6) / 3)


def test_forgetting_is_the_best_earlier_score_minus_the_last() -> None:
    assert forgetting(S, IN_ORDER) == pytest.approx(((0.9 - 0.5) + (0.8 - 0.9)) / 2)


def test_backward_transfer_is_the_last_score_minus_the_learned_one() -> None:
    assert backward_transfer(S, IN_ORDER) == pytest.approx(((0.5 - 0.9) + (0.9 - 0.8)) / 2)


def test_one_step_backward_transfer_is_the_change_by_the_next_phase() -> None:
    expected = ((0.7 - 0.9) + (0.9 - 0.8)) / 2
    assert one_step_backward_transfer(S, IN_ORDER) == pytest.approx(expected)
    assert one_step_backward_transfer(S[:1], [[0]]) is None


def test_worst_case_measures_see_a_drop_that_recovers() -> None:
    """Task 0 falls to 0.1 while task 1 is learned, and both recover before the phases end."""
    course = [
        (0, False, [0.2, 0.0, 0.0]),
        (0, True, [0.9, 0.0, 0.0]),
        (1, False, [0.1, 0.5, 0.0]),
        (1, True, [0.8, 0.7, 0.0]),
        (2, False, [0.6, 0.3, 0.4]),
        (2, True, [0.7, 0.6, 0.5]),
    ]

    def measured(stop: int) -> tuple[float | None, float | None]:
        at = [None, *(phase for phase, _, _ in course[:stop])]
        ends = [False, *(end for _, end, _ in course[:stop])]
        scores = [[0.0, 0.0, 0.0], *(row for _, _, row in course[:stop])]
        return (
            min_accuracy(scores, at, ends, IN_ORDER),
            worst_case_accuracy(scores, at, ends, IN_ORDER),
        )

    assert measured(0) == (None, None)
    assert measured(2) == (None, pytest.approx(0.9))
    assert measured(3) == (pytest.approx(0.1), pytest.approx(0.5 * 0.5 + 0.5 * 0.1))
    lowest = (0.1 + 0.3) / 2
    assert measured(6) == (pytest.approx(lowest), pytest.approx(0.5 / 3 + 2 / 3 * lowest))


def test_forward_transfer_to_new_classes_is_unknown_with_a_reason() -> None:
    metric = Metric("accuracy", "%", new_classes=True)
    result = finished_result(["a", "b"], [[50.0, 50.0], [90.0, 0.0], [0.0, 80.0]], metric=metric)
    assert result.forward_transfer is None
    assert result.reasons()["forward_transfer"].startswith("each task has new classes")
    assert finished_result(["a"], [[1.0], [2.0]]).reasons() == {
        **dict.fromkeys(
            [
                "forgetting",
                "backward_transfer",
                "one_step_backward_transfer",
                "forward_transfer",
                "min_accuracy",
            ],
            "it needs two phases",
        ),
        "online_accuracy": "the world reveals no labels",
        "online_return": "it is a data set",
    }


def test_forward_transfer_is_the_gain_before_training_the_task() -> None:
    assert forward_transfer(S, IN_ORDER, BEFORE) == pytest.approx(((0.1 - 0.05) + (0.3 - 0.1)) / 2)


def test_learning_accuracy_is_the_mean_of_the_diagonal() -> None:
    assert learning_accuracy(S, IN_ORDER) == pytest.approx((0.9 + 0.8 + 0.6) / 3)


def test_forgetting_ignores_scores_before_the_first_training() -> None:
    """A good score before the first training is luck and can't be forgotten."""
    lucky = [[0.1, 1.0], [0.2, 0.5], [0.9, 0.4], [0.3, 0.4]]
    assert forgetting(lucky, [[0], [1], [0], [0]]) == pytest.approx(0.5 - 0.4)
    assert forgetting([[0.4, 0.0], [0.8, 0.3], [0.5, 0.7]], [[0], [1], [1]]) == pytest.approx(
        0.8 - 0.5
    )


def test_untrained_tasks_do_not_count() -> None:
    assert average_score(S, [[0], [2], [0]]) == pytest.approx((0.5 + 0.6) / 2)
    assert learning_accuracy(S, [[0], [2], [0]]) == pytest.approx((0.5 + 0.3) / 2)
    assert forward_transfer(S, [[0], [2], [0]], BEFORE) == pytest.approx(0.2 - 0.1)


def test_measures_of_tasks_that_are_trained_twice() -> None:
    """Forgetting starts at the first phase of a task, backward transfer at the last."""
    cyclic = [[0.6, 0.0, 0.0], [0.2, 0.7, 0.1], [0.9, 0.3, 0.2], [0.4, 0.8, 0.1], [0.3, 0.6, 0.5]]
    phases = [[0], [1], [0], [1], [2]]
    assert forgetting(cyclic, phases) == pytest.approx(((0.9 - 0.3) + (0.8 - 0.6)) / 2)
    assert backward_transfer(cyclic, phases) == pytest.approx(((0.3 - 0.9) + (0.6 - 0.8)) / 2)
    assert forward_transfer(cyclic, phases, [0.0, 0.1, 0.3]) == pytest.approx(
        ((0.0 - 0.1) + (0.1 - 0.3)) / 2
    )
    assert learning_accuracy(cyclic, phases) == pytest.approx((0.9 + 0.8 + 0.5) / 3)


@pytest.mark.parametrize("phases", [[[0]], [[0, 1, 2]]], ids=["single", "joint"])
def test_forgetting_and_transfer_are_unknown_after_one_phase(phases: list[list[int]]) -> None:
    assert forgetting(S[:1], phases) is None
    assert backward_transfer(S[:1], phases) is None
    assert forward_transfer(S[:1], phases, BEFORE) is None
    assert average_score(S[:1], phases) is not None
    assert learning_accuracy(S[:1], phases) is not None


def test_unknown_scores_make_measures_unknown() -> None:
    nan = float("nan")
    unknown = [[0.9, 0.1], [nan, 0.8]]
    assert average_score(unknown, [[0], [1]]) is None
    assert forgetting(unknown, [[0], [1]]) is None
    assert backward_transfer(unknown, [[0], [1]]) is None
    assert learning_accuracy(unknown, [[0], [1]]) == pytest.approx((0.9 + 0.8) / 2)
    assert forward_transfer(unknown, [[0], [1]], [0.0, nan]) is None
    assert forgetting([[nan, 0.1], [0.5, 0.8]], [[0], [1]]) is None


@pytest.mark.parametrize(
    "history", [[], [0.5], [0.5, float("nan")], [float("nan"), 0.5], [float("inf"), 0.5]], ids=str
)
def test_forgetting_is_unknown_without_two_finite_scores(history: list[float]) -> None:
    assert task_forgetting(history) is None


@pytest.mark.parametrize("tasks", [2, 3, 5])
def test_the_identity_matrix_is_complete_forgetting(tasks: int) -> None:
    identity = [[float(i == j) for j in range(tasks)] for i in range(tasks)]
    phases = [[j] for j in range(tasks)]
    assert learning_accuracy(identity, phases) == 1.0
    assert forgetting(identity, phases) == 1.0
    assert backward_transfer(identity, phases) == -1.0
    assert forward_transfer(identity, phases, [0.0] * tasks) == 0.0
    assert average_score(identity, phases) == pytest.approx(1 / tasks)


@st.composite
def runs(draw: st.DrawFn) -> tuple[Matrix, list[list[int]]]:
    """A schedule of two to six phases over up to four tasks, and its scores."""
    tasks = draw(st.integers(1, 4))
    phases = draw(
        st.lists(
            st.lists(st.integers(0, tasks - 1), min_size=1, max_size=2, unique=True),
            min_size=2,
            max_size=6,
        )
    )
    row = st.lists(st.floats(-2.0, 1.0), min_size=tasks, max_size=tasks)
    return draw(st.lists(row, min_size=len(phases), max_size=len(phases))), phases


@settings(deadline=None, max_examples=200)
@given(run=runs(), shift=st.floats(-1.0, 1.0), scale=st.floats(0.1, 3.0))
def test_measures_scale_with_the_scores(
    run: tuple[Matrix, list[list[int]]], shift: float, scale: float
) -> None:
    """A shift of the scores shifts averages, but not differences.

    Forgetting is at least minus the backward transfer.
    """
    scores, phases = run
    scaled = [[scale * s + shift for s in row] for row in scores]
    loss, gain = forgetting(scores, phases), backward_transfer(scores, phases)
    assert (loss is None) == (gain is None)
    if loss is not None and gain is not None:
        assert loss >= -gain - 1e-12
        assert forgetting(scaled, phases) == pytest.approx(scale * loss, abs=1e-9)
        assert backward_transfer(scaled, phases) == pytest.approx(scale * gain, abs=1e-9)
    average, learned = average_score(scores, phases), learning_accuracy(scores, phases)
    assert average is not None
    assert learned is not None
    assert average_score(scaled, phases) == pytest.approx(scale * average + shift, abs=1e-9)
    last_row = [scores[-1][j] for j in sorted({j for phase in phases for j in phase})]
    assert min(last_row) - 1e-12 <= average <= max(last_row) + 1e-12
    all_scores = [s for row in scores for s in row]
    assert min(all_scores) - 1e-12 <= learned <= max(all_scores) + 1e-12


@settings(deadline=None, max_examples=100)
@given(
    scores=st.lists(st.lists(st.floats(-2.0, 1.0), min_size=3, max_size=3), min_size=3, max_size=3)
)
def test_the_average_score_follows_from_learning_and_transfer(scores: Matrix) -> None:
    """ACC = LA + (K - 1) / K * BWT for K tasks trained once each."""
    average = average_score(scores, IN_ORDER)
    learned = learning_accuracy(scores, IN_ORDER)
    back = backward_transfer(scores, IN_ORDER)
    assert average is not None
    assert learned is not None
    assert back is not None
    assert average == pytest.approx(learned + 2 / 3 * back, abs=1e-9)


def result_of_run(scores: Matrix, phases: list[list[int]], before: list[float]) -> Result:
    names = [f"t{j}" for j in range(len(before))]
    return finished_result(names, [before, *scores], phases, SCORE)


def test_the_measures_of_a_result_are_those_of_its_score_matrix() -> None:
    result = result_of_run(S, IN_ORDER, BEFORE)
    assert result.average_score == average_score(S, IN_ORDER)
    assert result.average_incremental_score == average_incremental_score(S, IN_ORDER)
    assert result.forgetting == forgetting(S, IN_ORDER)
    assert result.backward_transfer == backward_transfer(S, IN_ORDER)
    assert result.forward_transfer == forward_transfer(S, IN_ORDER, BEFORE)
    assert result.learning_accuracy == learning_accuracy(S, IN_ORDER)


MEASURES = [
    "average_score",
    "average_incremental_score",
    "forgetting",
    "backward_transfer",
    "forward_transfer",
    "learning_accuracy",
]


@pytest.mark.parametrize("done", [0, 1, 2])
def test_an_unfinished_run_has_the_measures_of_its_finished_phases(done: int) -> None:
    """Measures are None before the end of the first phase."""
    unfinished = result_of_run(S[:done], IN_ORDER, BEFORE)
    finished = result_of_run(S[:done], IN_ORDER[:done], BEFORE)
    assert [getattr(unfinished, name) for name in MEASURES] == [
        getattr(finished, name) if done else None for name in MEASURES
    ]


def test_forgetting_now_compares_the_latest_score_with_the_best() -> None:
    result = result_of_run([[0.9, 0.1, 0.2], [0.7, 0.8, 0.3]], IN_ORDER, BEFORE)
    result.evaluations.append(Evaluation(30, 2, False, [0.6, 0.85, 0.4], []))
    now = result.forgetting_now()
    assert now[:2] == [pytest.approx(0.3), pytest.approx(-0.05)]
    assert now[2] is None


@settings(deadline=None, max_examples=50)
@given(
    scores=st.lists(st.lists(st.floats(-2.0, 1.0), min_size=3, max_size=3), min_size=3, max_size=3)
)
def test_forgetting_of_a_run_is_the_mean_over_old_tasks(scores: Matrix) -> None:
    result = result_of_run(scores, IN_ORDER, BEFORE)
    old = [
        value for value in result.forgetting_now()[:2] if value is not None and math.isfinite(value)
    ]
    assert len(old) == 2
    assert sum(old) / 2 == pytest.approx(result.forgetting, abs=1e-9)


def test_the_average_incremental_score_averages_over_phases() -> None:
    """The averages over tasks so far are 0.9, (0.5 + 0.8) / 2 and (0.3 + 0.6 + 0.9) / 3.

    A task that is trained again counts once.
    """
    S = [[0.9, 0.0, 0.0], [0.5, 0.8, 0.0], [0.3, 0.6, 0.9]]
    assert average_incremental_score(S, [[0], [1], [2]]) == pytest.approx((0.9 + 0.65 + 0.6) / 3)
    assert average_incremental_score(S, [[0], [1], [0]]) == pytest.approx((0.9 + 0.65 + 0.45) / 3)
    assert average_incremental_score(S[:1], [[0, 1, 2]]) == pytest.approx(0.3)
    assert average_incremental_score([[math.nan, 1.0], [1.0, 1.0]], [[0], [1]]) is None
    assert average_incremental_score([], []) is None


def test_the_anytime_score_is_the_mean_over_steps_and_seen_tasks() -> None:
    """The mean is 0.4 for 10 steps, (0.8 + 0.2) / 2 for 30 and (0.6 + 0.4) / 2 for 10.

    Tasks that have not been seen do not count.
    """
    scores = [[0.4, 0.9], [0.8, 0.2], [0.6, 0.4]]
    assert anytime_score([10, 40, 50], scores, [{0}, {0, 1}, {0, 1}]) == pytest.approx(
        (10 * 0.4 + 30 * 0.5 + 10 * 0.5) / 50
    )
    assert anytime_score([10], [[0.4, math.nan]], [{0}]) == pytest.approx(0.4)
    assert anytime_score([10], [[0.4, math.nan]], [{0, 1}]) is None
    assert anytime_score([], [], []) is None


@given(level=st.floats(-1, 1), spans=st.lists(st.integers(1, 100), min_size=1, max_size=8))
@settings(deadline=None)
def test_the_anytime_score_of_a_constant_is_that_constant(level: float, spans: list[int]) -> None:
    """This holds for any number and spacing of evaluations."""
    steps = [sum(spans[: i + 1]) for i in range(len(spans))]
    assert anytime_score(steps, [[level]] * len(steps), [{0}] * len(steps)) == pytest.approx(
        level, abs=1e-12
    )
