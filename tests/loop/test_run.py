"""The loop: what happens in which order, and that looking changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from gymnasium.vector import VectorWrapper
from loop_helpers import FlatNet, control_learner, mlp, plant, same, stream, weights
from torch import Tensor, nn

from everloop.contract import ACCURACY, Task
from everloop.loop import (
    EWC,
    Batch,
    Callback,
    Divergence,
    Learner,
    NotFiniteError,
    Plan,
    Replay,
    Result,
    Run,
    Strategy,
    SupervisedLearner,
    Training,
    scores,
)
from everloop.loop.evaluate import scaled

KINDS = pytest.mark.parametrize("kind", ["stream", "ppo", "recurrent ppo"])
FOREVER = 10**9


def setting(kind: str, seed: int = 0) -> tuple[Learner, Any, Any]:
    """A learner, a world to evaluate in, a world to consolidate in."""
    if kind == "stream":
        return (
            SupervisedLearner(mlp(seed=seed), stream(seed=seed), Training(1e-2)),
            stream(16, split="test"),
            stream(),
        )
    learner = control_learner(kind == "recurrent ppo", seed=seed)
    learner.model.set_random_seed(seed)
    return learner, plant(5), plant(4)


def plan(
    eval_every: int = FOREVER, phases: Sequence[Sequence[int]] = ((0,), (1,)), steps: int = 64
) -> Plan:
    return Plan(phases, [steps] * len(phases), eval_every, consolidation_steps=4, seed=5)


def played(kind: str, eval_every: int = FOREVER, seed: int = 0) -> tuple[Result, list[Tensor]]:
    learner, evaluation, consolidation = setting(kind, seed)
    strategies = [EWC(50.0), Replay(capacity=50, batch_size=4)]
    return Run(learner, plan(eval_every), evaluation, consolidation, strategies).go(), weights(
        learner.module
    )


@KINDS
def test_looking_often_or_never_leaves_training_the_same_to_the_last_bit(kind: str) -> None:
    often, never = played(kind, eval_every=1), played(kind)
    assert len(often[0].evaluations) > len(never[0].evaluations) == 3
    assert same(often[1], never[1])
    assert often[0].scores == never[0].scores


def test_looking_leaves_a_network_with_dropout_the_same_too() -> None:
    """What is random in training is not drawn from while it is measured."""

    def final(eval_every: int) -> list[Tensor]:
        _, evaluation, consolidation = setting("stream")
        torch.manual_seed(0)
        module = FlatNet(
            nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Dropout(0.5), nn.Linear(8, 10))
        )
        learner = SupervisedLearner(module, stream(), Training(1e-2))
        Run(learner, plan(eval_every), evaluation, consolidation, []).go()
        return weights(module)

    assert same(final(1), final(FOREVER))


@KINDS
def test_the_same_seed_gives_the_same_scores_to_the_last_bit(kind: str) -> None:
    (first, a), (second, b), (other, c) = (
        played(kind, 32),
        played(kind, 32),
        played(kind, 32, seed=1),
    )
    assert first.before == second.before
    assert first.scores == second.scores != other.scores
    assert [e.scores for e in first.evaluations] == [e.scores for e in second.evaluations]
    assert same(a, b)
    assert not same(a, c)


@KINDS
def test_the_result_holds_the_score_matrix_and_what_lies_between(kind: str) -> None:
    learner, evaluation, consolidation = setting(kind)
    before = scores(learner, evaluation, [], 5)
    result = Run(learner, plan(32), evaluation, consolidation, []).go()
    assert result.tasks == [task.name for task in evaluation.tasks]
    assert result.phases == [[0], [1]]
    assert result.before == before
    assert len(result.scores) == 2
    assert result.scores[-1] == scores(learner, evaluation, [], 5)
    assert result.steps == learner.steps == 128
    first, *later = result.evaluations
    assert (first.step, first.phase, first.ends_phase, first.scores) == (0, None, False, before)
    assert [(e.step, e.phase, e.scores) for e in later if e.ends_phase] == [
        (64, 0, result.scores[0]),
        (128, 1, result.scores[1]),
    ]
    assert {32, 96} <= {e.step for e in later if not e.ends_phase}
    assert [e.phase for e in later] == sorted(e.phase for e in later if e.phase is not None)
    assert [e.scores for e in result.evaluations] == [
        scaled(evaluation, e.returns) for e in result.evaluations
    ]
    assert result.wall_seconds > 0


@pytest.mark.parametrize("flushed", [False, True])
def test_numbers_too_small_for_a_float_are_0_in_a_run_and_what_they_were_after_it(
    flushed: bool,
) -> None:
    """Many times slower to calculate with, and of no weight; other code of the process keeps its
    own way.
    """
    found = []

    class Spy(Callback):
        def on_step(self, run: Run) -> None:
            found.append(float(torch.tensor([1e-40]) * 1))

    torch.set_flush_denormal(flushed)
    try:
        learner, evaluation, consolidation = setting("stream")
        Run(learner, plan(), evaluation, consolidation, [], [Spy()]).go()
        assert found
        assert not any(found)
        assert (float(torch.tensor([1e-40]) * 1) == 0) is flushed
    finally:
        torch.set_flush_denormal(False)


@KINDS
def test_one_step_has_one_evaluation(kind: str) -> None:
    learner, evaluation, consolidation = setting(kind)
    steps = [e.step for e in Run(learner, plan(32), evaluation, consolidation, []).go().evaluations]
    assert steps == sorted(set(steps))


class Ear(Callback):
    """Writes down what it hears."""

    def __init__(self, name: str, heard: list[str]) -> None:
        self.name, self.heard = name, heard

    def on_run_begin(self, run: Run) -> None:
        assert run.result.scores == []
        assert [e.phase for e in run.result.evaluations] == [None]
        self.heard.append(f"{self.name} begin {sum(run.plan.steps)}")

    def on_phase_begin(self, run: Run) -> None:
        assert len(run.result.scores) == run.phase
        self.heard.append(f"{self.name} phase {run.phase}")

    def on_step(self, run: Run) -> None:
        self.heard.append(f"{self.name} step {run.steps}")

    def on_evaluation(self, run: Run) -> None:
        self.heard.append(f"{self.name} evaluation {run.result.evaluations[-1].step}")

    def on_phase_end(self, run: Run) -> None:
        assert len(run.result.scores) == run.phase + 1
        self.heard.append(f"{self.name} phase {run.phase} over")

    def on_run_end(self, run: Run) -> None:
        self.heard.append(f"{self.name} end {run.result.steps}")


def test_callbacks_are_told_everything_in_order() -> None:
    learner, evaluation, consolidation = setting("stream")
    heard: list[str] = []
    a, b = Ear("a", heard), Ear("b", heard)
    Run(learner, plan(16, steps=24), evaluation, consolidation, [], [a, b]).go()
    of_one = [word.removeprefix("a ") for word in heard if word.startswith("a")]
    first = [
        "phase 0",
        "step 8",
        "step 16",
        "evaluation 16",
        "step 24",
        "evaluation 24",
        "phase 0 over",
    ]
    second = [
        "phase 1",
        "step 32",
        "step 40",
        "evaluation 40",
        "step 48",
        "evaluation 48",
        "phase 1 over",
    ]
    assert of_one == ["begin 48", *first, *second, "end 48"]
    assert heard[0::2] == [f"a {word}" for word in of_one]
    assert heard[1::2] == [f"b {word}" for word in of_one]


class Logged(Callback):
    """Keeps what is logged under names that begin with `prefix`."""

    def __init__(self, prefix: str) -> None:
        self.prefix, self.scalars = prefix, list[tuple[int, dict[str, float]]]()

    def on_log(self, run: Run, scalars: dict[str, float]) -> None:
        if all(name.startswith(self.prefix) for name in scalars):
            self.scalars.append((run.steps, scalars))


def test_divergence_is_logged_with_each_evaluation_after_the_first_tasks_end() -> None:
    learner, evaluation, consolidation = setting("stream")
    logged = Logged("divergence/")
    Run(learner, plan(16, steps=24), evaluation, consolidation, [], [logged, Divergence()]).go()
    assert [(step, {name.split("/")[2] for name in d}) for step, d in logged.scalars] == [
        (24, {"0-1"}),
        (40, {"0-1"}),
        (48, {"0-1", "2-3"}),
    ]
    assert logged.scalars[0][1]["divergence/kl/0-1/network"] == pytest.approx(0.0, abs=1e-9)
    assert logged.scalars[1][1]["divergence/kl/0-1/network"] > 1e-6


def test_a_task_too_short_for_a_report_logs_its_loss_at_its_end() -> None:
    learner, evaluation, consolidation = setting("stream")
    logged = Logged("train/")
    Run(learner, plan(steps=24), evaluation, consolidation, [], [logged]).go()
    assert [step for step, _ in logged.scalars] == [24, 48]


@KINDS
def test_an_evaluation_within_a_phase_sees_the_network_that_has_learned_from_all_steps_so_far(
    kind: str,
) -> None:
    """So the same number comes out when the phase ends there."""

    def at_64(steps: int) -> list[float]:
        learner, evaluation, consolidation = setting(kind)
        result = Run(learner, plan(64, phases=[[0]], steps=steps), evaluation, consolidation).go()
        return next(now.scores for now in result.evaluations if now.step == 64)

    assert at_64(128) == at_64(64)


def test_a_callback_may_end_a_phase_and_the_run_goes_on_with_the_next() -> None:
    class Impatient(Callback):
        def on_step(self, run: Run) -> None:
            if run.phase == 0 and run.steps == 16:
                run.end_phase()

    learner, evaluation, consolidation = setting("stream")
    entries: list[str] = []
    result = Run(
        learner, plan(steps=32), evaluation, consolidation, [Diary("a", entries)], [Impatient()]
    ).go()
    assert [(now.step, now.phase) for now in result.rows] == [(16, 0), (48, 1)]
    assert result.complete
    assert entries == [
        "a begins 0-1 at 0",
        "a ends 0-1 at 16",
        "a begins 2-3 at 16",
        "a ends 2-3 at 48",
    ]


def test_what_a_callback_asks_for_waits_until_all_have_been_told() -> None:
    class Impatient(Callback):
        def on_evaluation(self, run: Run) -> None:
            if not run.result.evaluations[-1].ends_phase:
                run.end_phase()

    learner, evaluation, consolidation = setting("stream")
    heard: list[str] = []
    Run(
        learner,
        plan(16, phases=[[0]], steps=32),
        evaluation,
        consolidation,
        [],
        [Impatient(), Ear("a", heard)],
    ).go()
    assert heard[-4:] == ["a evaluation 16", "a evaluation 16", "a phase 0 over", "a end 16"]


def test_a_callback_may_stop_the_run_and_the_result_is_kept() -> None:
    class Enough(Callback):
        def on_step(self, run: Run) -> None:
            if run.phase == 1 and run.evaluate().scores[1] > 50:
                run.stop()

    learner, evaluation, consolidation = setting("stream")
    heard: list[str] = []
    result = Run(
        learner, plan(steps=400), evaluation, consolidation, [], [Enough(), Ear("a", heard)]
    ).go()
    assert not result.complete
    assert len(result.rows) == 1
    assert result.evaluations[-1].scores[1] > 50 >= result.evaluations[-2].scores[1]
    assert heard[-1] == f"a end {result.steps}"
    assert 400 < learner.steps == result.steps < 800


def test_a_declared_boundary_consolidates_and_begins_again_within_the_phase() -> None:
    class Halfway(Callback):
        def on_step(self, run: Run) -> None:
            if run.steps == 16:
                run.boundary()

    learner, evaluation, consolidation = setting("stream")
    entries: list[str] = []
    result = Run(
        learner,
        plan(phases=[[0]], steps=32),
        evaluation,
        consolidation,
        [Diary("a", entries)],
        [Halfway()],
    ).go()
    assert entries == [
        "a begins 0-1 at 0",
        "a ends 0-1 at 16",
        "a begins 0-1 at 16",
        "a ends 0-1 at 32",
    ]
    assert len(result.rows) == 1


@pytest.mark.parametrize("act", [Run.end_phase, Run.boundary])
def test_what_needs_a_phase_under_way_is_refused_between_two(act: Callable[[Run], None]) -> None:
    learner, evaluation, consolidation = setting("stream")
    with pytest.raises(RuntimeError, match="no phase is in progress"):
        act(Run(learner, plan(), evaluation, consolidation))


class Diary(Strategy):
    """Writes down when it is called."""

    def __init__(self, name: str, entries: list[str]) -> None:
        self.name, self.entries = name, entries
        self.batches: list[tuple[int, Batch]] = []

    def begin_task(self, task: Task, learner: Learner) -> None:
        self.entries.append(f"{self.name} begins {task.name} at {learner.steps}")

    def end_task(self, task: Task, learner: Learner, batches: Sequence[Batch]) -> None:
        self.entries.append(f"{self.name} ends {task.name} at {learner.steps}")
        self.batches += [(task.id, batch) for batch in batches]


def diary(phases: Sequence[Sequence[int]], kind: str = "stream") -> list[str]:
    learner, evaluation, consolidation = setting(kind)
    entries: list[str] = []
    Run(
        learner,
        plan(phases=phases, steps=32),
        evaluation,
        consolidation,
        [Diary("a", entries), Diary("b", entries)],
    ).go()
    return entries


def test_strategies_begin_and_end_every_task_once_in_their_order() -> None:
    expected = []
    for phase, name in enumerate(
        ["2-3", "0-1", "2-3"]
    ):  # a task that comes back begins and ends again
        for word, step in (("begins", 32 * phase), ("ends", 32 * phase + 32)):
            expected += [f"a {word} {name} at {step}", f"b {word} {name} at {step}"]
    assert diary([[1], [0], [1]]) == expected


def test_tasks_trained_together_all_begin_before_and_end_after() -> None:
    entries = [entry for entry in diary([[0, 1, 2]]) if entry.startswith("a")]
    assert [e.split()[1] for e in entries] == ["begins"] * 3 + ["ends"] * 3
    assert [e.split()[2] for e in entries] == ["0-1", "2-3", "4-5"] * 2


@KINDS
def test_a_task_ends_with_fresh_examples_of_it(kind: str) -> None:
    learner, evaluation, consolidation = setting(kind)
    strategy = Diary("a", [])
    Run(learner, plan(), evaluation, consolidation, [strategy]).go()
    assert [task for task, _ in strategy.batches] == [0, 1]
    for task, batch in strategy.batches:
        assert batch.length * len(batch) == 4 * consolidation.num_envs
        assert batch.task is not None
        assert set(batch.task.tolist()) == {task}
        assert (batch.target is not None) == (kind == "stream")


@pytest.mark.parametrize(("copies", "steps"), [(5, 51), (8, 16), (8, 17), (8, 64), (2, 3)])
def test_divergence_is_measured_on_at_most_128_examples_from_the_whole_batch(
    copies: int, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    probes: list[Batch] = []
    remember: Callable[..., None] = Divergence.remember

    def noted(self: Divergence, task: str, learner: Learner, probe: Batch) -> None:
        probes.append(probe)
        remember(self, task, learner, probe)

    monkeypatch.setattr(Divergence, "remember", noted)
    learner, evaluation, _ = setting("stream")
    strategy = Diary("a", [])
    Run(
        learner,
        Plan([[0]], [8], FOREVER, steps),
        evaluation,
        stream(copies),
        [strategy],
        [Divergence()],
    ).go()
    whole = strategy.batches[0][1]
    assert len(whole) == copies * steps
    assert min(len(whole), 64) <= len(probes[0]) <= 128
    rows = {image.numpy().tobytes(): i for i, image in enumerate(whole.obs["image"][0])}
    found = [rows[image.numpy().tobytes()] for image in probes[0].obs["image"][0]]
    assert max(found) >= len(whole) * 0.9 - 1


def test_what_was_heard_before_a_breakdown_stays_heard() -> None:
    learner, evaluation, consolidation = setting("stream")
    heard: list[str] = []

    class Breaking(Strategy):
        def extra_loss(self, learner: Learner, batch: Batch | None) -> Tensor | None:
            if learner.steps < 24:
                return None
            raise NotFiniteError(f"the loss is nan at step {learner.steps}")

    with pytest.raises(NotFiniteError, match="at step 24"):
        Run(learner, plan(16), evaluation, consolidation, [Breaking()], [Ear("a", heard)]).go()
    assert heard == [
        "a begin 128",
        "a phase 0",
        "a step 8",
        "a step 16",
        "a evaluation 16",
        "a step 24",
    ]


def test_a_run_replaces_the_strategies_of_an_earlier_one() -> None:
    learner, evaluation, consolidation = setting("stream")
    entries: list[str] = []
    Run(learner, plan(), evaluation, consolidation, [Diary("old", entries)]).go()
    entries.clear()
    Run(learner, plan(), evaluation, consolidation, [Diary("new", entries)]).go()
    assert {entry.split()[0] for entry in entries} == {"new"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"phases": []}, r"schedule is \[\]; give at least one phase"),
        (
            {"phases": [[0], []]},
            r"schedule is \[\[0\], \[\]\]; give at least one phase of at least one task",
        ),
        ({"steps": [8]}, r"steps are \[8\]; give 1 or more for each of the 2 phases"),
        ({"steps": [8, 8, 8]}, r"steps are \[8, 8, 8\]"),
        ({"steps": [8, 0]}, r"steps are \[8, 0\]"),
        ({"eval_every": 0}, "eval_every is 0; it must be 1 or more"),
        ({"consolidation_steps": 0}, "consolidation_steps is 0; it must be 1 or more"),
    ],
    ids=str,
)
def test_plans_that_cannot_be_are_refused_by_value(settings: dict[str, Any], message: str) -> None:
    possible = {"phases": [[0], [1]], "steps": [8, 8], "eval_every": 8, "consolidation_steps": 4}
    with pytest.raises(ValueError, match=message):
        Plan(**(possible | settings))


def test_a_task_that_the_world_does_not_have_is_named() -> None:
    learner, evaluation, consolidation = setting("stream")
    with pytest.raises(ValueError, match="unknown task 9"):
        Run(learner, plan(phases=[[9]]), evaluation, consolidation, []).go()


def test_scores_rise_with_learning_and_fall_with_forgetting() -> None:
    """Class-incremental digits: what was just learned is known, what came before is gone."""
    learner, evaluation, consolidation = setting("stream")
    result = Run(learner, plan(steps=1200), evaluation, consolidation, []).go()
    assert result.metric == ACCURACY
    assert result.scores[0][0] > 90
    assert result.scores[1][1] > 80
    assert result.scores[1][2:] == [0.0, 0.0, 0.0]
    assert result.forgetting is not None
    assert 50 < result.forgetting <= 100


def test_every_listener_hears_the_scalars_of_training() -> None:
    learner, evaluation, consolidation = setting("stream")
    heard: list[tuple[str, int, list[str]]] = []

    class Scalars(Callback):
        def __init__(self, name: str) -> None:
            self.name = name

        def on_log(self, run: Run, scalars: dict[str, float]) -> None:
            heard.append((self.name, run.steps, sorted(scalars)))

    Run(learner, plan(steps=160), evaluation, consolidation, [], [Scalars("a"), Scalars("b")]).go()
    logged = ["train/gradient_norm", "train/learning_rate", "train/loss"]
    assert heard == [(name, step, logged) for step in (160, 320) for name in "ab"]


@pytest.mark.parametrize("kind", ["stream", "ppo"])
def test_the_gradient_norm_is_that_of_the_latest_step(kind: str) -> None:
    """Of what the optimizer was given, strategies and clipping included."""
    learner, evaluation, consolidation = setting(kind)
    given: list[float] = []

    def note(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        squares = [
            float((p.grad.double() ** 2).sum())
            for p in learner.module.parameters()
            if p.grad is not None
        ]
        given.append(sum(squares) ** 0.5)

    learned = Run(learner, plan(phases=[[0]]), evaluation, consolidation, [EWC(50.0)]).go()
    learner.optimizer.register_step_post_hook(note)
    learner.learn([1], 64)
    assert learned.steps == 64
    assert learner.gradient_norm() == pytest.approx(given[-1], rel=1e-5)


def test_a_wrapper_that_hands_on_nothing_is_refused_by_what_it_lacks() -> None:
    learner, evaluation, consolidation = setting("stream")
    with pytest.raises(
        ValueError,
        match="VectorWrapper is no world: it has no tasks, reference, metric, examples, state_dict",
    ):
        Run(learner, plan(), VectorWrapper(evaluation), consolidation)
