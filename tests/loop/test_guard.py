"""A run that diverges goes back and learns more slowly, exactly as if it had been set to."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contract_helpers import active, stream_learner
from loop_helpers import (
    control_learner,
    mlp,
    off_policy_learner,
    off_policy_world,
    plant,
    same,
    stream,
    weights,
)
from run_helpers import LogRecorder
from run_state_helpers import OPTIONS, ewc_and_replay, final_state, flat
from stable_baselines3.common.noise import OrnsteinUhlenbeckActionNoise
from test_run_checkpoints import forgetful_run

from everloop.loop import (
    Callback,
    Checkpoint,
    Checkpoints,
    Diverged,
    Guard,
    Learner,
    NotFiniteError,
    Plan,
    Result,
    Run,
    SupervisedLearner,
)

PHASES: list[list[int]] = [[0], [1], [0]]
PLAN = Plan(PHASES, [80, 80, 48], eval_every=24, seed=5)


@pytest.fixture(autouse=True)
def _silent() -> Iterator[None]:
    """Rollbacks are warnings; one test looks at them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


class Fails(Callback):
    """Lets each visit of some steps fail, as long as the learning rate is above a factor of it."""

    def __init__(self, *steps: int, until: float = 0.5, kind: type = Diverged) -> None:
        self.steps, self.until, self.kind = steps, until, kind

    def on_step(self, run: Run) -> None:
        if run.steps in self.steps and run.learner.rate_factor > self.until:
            raise self.kind(f"the loss is nan at step {run.steps}; try something else")


def learner_of(kind: str, rate: float) -> tuple[Learner, Any]:
    """A learner with a learning rate, and its world for evaluation."""
    if kind in OPTIONS:
        options = replace(OPTIONS[kind], learning_rate=rate)
        return SupervisedLearner(mlp(), stream(), options), stream(16, split="test")
    parameters: dict[str, Any] = {"learning_rate": lambda left: rate * (0.2 + left)}
    if "ppo" in kind:
        return control_learner("recurrent" in kind, parameters=parameters), plant(5)
    sac = "sac" in kind
    if kind == "noisy sac":
        zeros = np.zeros(off_policy_world(True).single_action_space.shape)
        parameters["action_noise"] = OrnsteinUhlenbeckActionNoise(zeros, zeros + 0.2)
    return off_policy_learner(sac, parameters=parameters), off_policy_world(sac, 5)


def run_of(kind: str, rate: float, callbacks: list[Callback]) -> Run:
    learner, evaluation = learner_of(kind, rate)
    learner.seed(0)
    strategies = ewc_and_replay() if kind != "drift" else []
    return Run(learner, PLAN, evaluation, strategies, callbacks)


def scores_of(result: Result) -> list[Any]:
    return flat({**replace(result, wall_seconds=0.0, rollbacks=[]).to_dict()})


@pytest.mark.parametrize(
    "kind",
    ["plain", "cosine", "plateau", "drift", "ppo", "recurrent ppo", "dqn", "sac", "noisy sac"],
)
def test_a_run_that_goes_back_to_its_begin_equals_one_with_half_the_rate(kind: str) -> None:
    """Also in the later phases, in which schedules start again."""
    rates = LogRecorder("")
    slow = run_of(kind, 5e-3, [rates])
    slow.go()
    guarded = LogRecorder("")
    found = run_of(kind, 1e-2, [Fails(64), guarded, Guard(on_divergence="rollback")])
    found.go()
    assert [vars(each) for each in found.result.rollbacks] == [
        {
            "step": 64,
            "from_step": 0,
            "rate_factor": 0.5,
            "because": "the loss is nan at step 64",
        }
    ]
    assert same(weights(found.learner.module), weights(slow.learner.module))
    assert scores_of(found.result) == scores_of(slow.result)
    began = guarded.scalars.index((0, {"guard/rollback": 0.5}))
    after = guarded.scalars[began + 1 :]
    assert [untimed(e) for e in after] == [untimed(e) for e in rates.scalars]
    assert any("train/learning_rate" in scalars for _, scalars in after)


def untimed(entry: tuple[int, dict[str, float]]) -> tuple[int, dict[str, float]]:
    return entry[0], {k: v for k, v in entry[1].items() if not k.startswith("time/")}


def advance_to_the_end(run: Run) -> None:
    """Advance without the guard, which only `go` asks."""
    while not run.done:
        run.advance()


@pytest.mark.parametrize("kind", ["cosine", "ppo", "sac"])
def test_a_run_goes_back_to_the_last_checkpoint_and_a_resumed_one_equals_it(
    kind: str, tmp_path: Path
) -> None:
    def guarded(folder: str, *more: Callback) -> Run:
        saving = Checkpoints(tmp_path / folder, every=32)
        guard = Guard(on_divergence="rollback", checkpoints=saving)
        return run_of(kind, 1e-2, [Fails(128, until=0.25), *more, saving, guard])

    whole = guarded("a")
    whole.go()
    assert [(r.step, r.from_step, r.rate_factor) for r in whole.result.rollbacks] == [
        (128, 96, 0.5),
        (128, 96, 0.25),
    ]
    stopped = guarded("b")
    stopped.begin()
    with pytest.raises(Diverged) as caught:
        advance_to_the_end(stopped)
    assert stopped.callbacks[-1].on_failure(stopped, caught.value)
    saved = Checkpoint.open(tmp_path / "b" / "checkpoints" / "step-96-2")
    assert saved.step == stopped.steps == 96
    resumed = guarded("b")
    resumed.load(saved)
    assert resumed.learner.rate_factor == 0.5
    assert len(resumed.result.rollbacks) == 1
    resumed.go()
    assert final_state(resumed) == final_state(whole)


def test_after_the_last_rollback_the_run_stops() -> None:
    run = run_of("plain", 1e-2, [Fails(48, until=0), Guard(None, "rollback", 2)])
    with pytest.raises(Diverged) as caught:
        run.go()
    assert caught.value.limit_reached
    assert caught.value.__notes__ == [
        "it was rolled back 2 times, and the learning rate is 0.25 of what was set"
    ]
    assert [r.rate_factor for r in run.result.rollbacks] == [0.5, 0.25]


def test_stopping_is_the_default_and_changes_nothing() -> None:
    run = run_of("plain", 1e-2, [Fails(48), Guard()])
    with pytest.raises(Diverged, match="step 48"):
        run.go()
    assert (run.steps, run.result.rollbacks, run.learner.rate_factor) == (48, [], 1.0)


def test_what_the_world_does_again_at_the_same_step_stops_the_run() -> None:
    class Poisoned(Callback):
        def on_step(self, run: Run) -> None:
            if run.steps == 48:
                assert isinstance(run.learner, SupervisedLearner)
                image = run.learner._obs["image"].astype(np.float32)
                run.learner._obs = {"image": np.full_like(image, np.nan)}

    run = run_of("plain", 1e-2, [Poisoned(), Guard(on_divergence="rollback")])
    with pytest.raises(NotFiniteError, match="'image' holds nan at step 48") as caught:
        run.go()
    assert len(run.result.rollbacks) == 1
    assert "the same happened before" in caught.value.__notes__[0]
    assert not isinstance(caught.value, Diverged)


@pytest.mark.parametrize("reset_every", [32, None])
def test_without_checkpoints_a_run_goes_back_to_the_last_phases_end(
    reset_every: int | None,
) -> None:
    run = forgetful_run("plain", 0, reset_every)
    run.callbacks = [Fails(120), Guard(on_divergence="rollback")]
    run.go()
    assert [r.from_step for r in run.result.rollbacks] == [80]


def test_in_a_world_without_a_state_only_exact_checkpoints_count(tmp_path: Path) -> None:
    run = forgetful_run("plain", 0, 32)
    saving = Checkpoints(tmp_path, every=8)
    run.callbacks = [Fails(120), saving, Guard(None, "rollback", checkpoints=saving)]
    run.go()
    assert [r.from_step for r in run.result.rollbacks] == [96]


@pytest.mark.parametrize("name", ["lora", "progressive"])
def test_a_network_that_has_grown_goes_back_to_where_it_had_the_same_weights(name: str) -> None:
    world = stream(16, split="test", label_space="within_task", task_cue=True)
    callbacks = [Fails(96), Guard(on_divergence="rollback")]
    plan = Plan([[0], [1]], [64, 64], 10**6)
    run = Run(stream_learner(name), plan, world, [active(name)], callbacks)
    run.go()
    assert [(r.step, r.from_step) for r in run.result.rollbacks] == [(96, 72)]


@pytest.mark.parametrize(
    ("kind", "name"), [("plain", "loss"), ("ppo", "train/.*loss"), ("sac", "train/.*loss")]
)
def test_a_loss_above_the_limit_is_divergence(kind: str, name: str) -> None:
    run = run_of(kind, 1e-2, [Guard(max_loss=1e-6)])
    message = rf"^the {name} is \S+ at step \d+, above max_loss 1e-06; .* or raise max_loss"
    with pytest.raises(Diverged, match=message):
        run.go()
    assert run.result.rows == []
    run_of(kind, 1e-2, [Guard(max_loss=1e6)]).go()


def test_the_warning_says_what_happened_and_where_the_run_goes_on() -> None:
    run = run_of("plain", 1e-2, [Fails(48), Guard(on_divergence="rollback")])
    message = "^the loss is nan at step 48; the run goes back to step 0, with 0.5 of the learning"
    with pytest.warns(UserWarning, match=message):
        run.go()


def test_strategies_that_train_by_themselves_use_the_lower_rate_too() -> None:
    learner, _ = learner_of("plain", 1e-2)
    learner.scale_rate(0.5)
    saved = learner.learned()
    assert learner.optimizer.defaults["lr"] == learner.optimizer.param_groups[0]["lr"] == 5e-3
    learner.scale_rate(0.125)
    learner.load_learned(saved)
    assert learner.optimizer.defaults["lr"] == learner.optimizer.param_groups[0]["lr"] == 5e-3


def test_a_rollback_of_what_was_learned_keeps_the_lower_rate() -> None:
    run = run_of("cosine", 1e-2, [])
    run.begin()
    run.advance()
    snapshot = run.snapshot()
    run.learner.scale_rate(0.25)
    run.rollback(snapshot)
    assert run.learner.rate_factor == 0.25
    assert run.learner.learned()["rate"]["full"] == [2.5e-3]


def test_a_rollback_survives_the_file_of_the_result(tmp_path: Path) -> None:
    run = run_of("plain", 1e-2, [Fails(48), Guard(on_divergence="rollback")])
    result = run.go()
    assert Result.from_dict(result.to_dict()).rollbacks == result.rollbacks
    old = {key: value for key, value in result.to_dict().items() if key != "rollbacks"}
    assert Result.from_dict(old).rollbacks == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Guard(max_loss=0.0), "max_loss is 0.0; it must be finite and above 0"),
        (lambda: Guard(max_loss=torch.inf), "max_loss is inf"),
        (lambda: Guard(on_divergence="go"), "on_divergence is 'go'; choose one of"),  # type: ignore[arg-type]
        (lambda: Guard(max_rollbacks=0), "max_rollbacks is 0; it must be 1 or more"),
    ],
)
def test_a_value_out_of_range_is_named(make: Callable[[], Guard], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_run_without_a_known_state_says_so() -> None:
    run = run_of("plain", 1e-2, [Fails(48), guard := Guard(on_divergence="rollback")])
    run.begin()
    run.advance()
    guard._kept = None
    error = Diverged("the loss is nan at step 48")
    assert not guard.on_failure(run, error)
    assert error.__notes__ == ["it can't be rolled back: no earlier state is known"]
