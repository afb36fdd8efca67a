"""Runs that are saved to the disk: in worlds that give their state, and in others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from loop_helpers import perturb
from run_state_helpers import SETTINGS, ewc_and_replay, final_state, flat, make_run

from everloop.envs.wrapper import TaskVectorWrapper
from everloop.loop import Checkpoint, Checkpoints, Plan, Run
from everloop.loop.checkpoint import checkpoints

KINDS = ("plain", "ppo", "recurrent ppo", "dqn", "sac")


class Forgetful(TaskVectorWrapper):
    """A world that can't give its state."""

    def state_dict(self) -> None:
        return None

    def show(self, task: int, rows: Any) -> Any:
        return self.env.show(task, rows)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        raise AssertionError("nothing to load")


def forgetful_run(kind: str, seed: int, reset_every: int | None = None, run_seed: int = 5) -> Run:
    """A run of three phases in a world that can't give its state."""
    learner, evaluation = SETTINGS[kind](seed)
    world = Forgetful(learner.world)
    learner.world = world
    if hasattr(learner, "env"):
        learner.env.world = world
    learner.seed(seed)
    plan = Plan(
        [[0], [1], [0]], [80, 80, 48], eval_every=24, seed=run_seed, reset_every=reset_every
    )
    return Run(learner, plan, evaluation, ewc_and_replay(seed))


@pytest.mark.parametrize("kind", SETTINGS)
def test_a_run_loaded_from_the_disk_continues_bit_for_bit(kind: str, tmp_path: Path) -> None:
    first = make_run(kind, 0, ewc_and_replay())
    first.begin()
    while first.steps < 112:
        first.advance()
    first.save(tmp_path / "saved", {"note": "mine"})
    found = Checkpoint.open(tmp_path / "saved")
    assert (found.step, found.inexact, found.about) == (first.steps, None, {"note": "mine"})
    saved = flat({**first.state_dict(), "seconds": 0})
    second = make_run(kind, 3, ewc_and_replay(seed=7))
    torch.manual_seed(99)
    second.load(tmp_path / "saved")
    # the optimizer, its rate, every generator, the memories, and the batch that comes next
    assert flat({**second.state_dict(), "seconds": 0}) == saved
    second.go()
    first.load(tmp_path / "saved")
    first.go()
    assert final_state(second) == final_state(first)


@pytest.mark.parametrize("reset_every", [None, 32])
@pytest.mark.parametrize("kind", KINDS)
def test_a_world_without_a_state_is_restored_exactly_where_it_is_reset(
    kind: str, reset_every: int | None
) -> None:
    first = forgetful_run(kind, 0, reset_every)
    first.begin()
    states, inexact = [], 0
    while not first.done:
        first.advance()
        if first.inexact is None:
            states.append(first.state_dict())
        else:
            assert "Forgetful can't give its state" in first.inexact
            inexact += 1
    assert inexact or reset_every is not None
    within = sum(state["phase_end"] is not None for state in states)
    assert len(states) - within == 3
    assert (within > 0) == (reset_every is not None)
    for state in states:
        second = forgetful_run(kind, 0, reset_every)
        perturb(second.learner.module, 1)
        torch.manual_seed(99)
        second.load_state_dict(state)
        second.go()
        assert outcome(second) == outcome(first)


def outcome(run: Run) -> list[Any]:
    """What a run has learned, without the last observations, which nothing depends on."""
    return flat(run.learner.learned()) + flat(replace(run.result, wall_seconds=0.0).to_dict())


def test_the_resets_depend_on_the_seed_of_the_run_and_on_the_step() -> None:
    def observed(run_seed: int) -> list[float]:
        run = forgetful_run("ppo", 0, run_seed=run_seed)
        run.begin()
        seen = []
        while not run.done:
            began = run._phase_end is None
            run.advance()
            if began:
                first = run.learner.model.rollout_buffer.observations.values()
                seen.append(sum(float(x[0].sum()) for x in first))
        return seen

    one, same, other = observed(5), observed(5), observed(6)
    assert one == same
    assert one != other
    assert len(set(one)) == len(one), "phases 0 and 2 play the same task from other states"


def test_a_run_saved_in_between_says_why_it_is_not_exact_and_goes_on(tmp_path: Path) -> None:
    first = forgetful_run("ppo", 0)
    first.begin()
    first.advance()
    first.save(tmp_path / "saved")
    found = Checkpoint.open(tmp_path / "saved")
    assert found.inexact == "Forgetful can't give its state, and the phase had not ended"
    second = forgetful_run("ppo", 3)
    second.load(tmp_path / "saved")
    assert second.steps == first.steps
    assert second.go().complete


def names(folder: Path) -> list[str]:
    return [path.name for path in checkpoints(folder / "checkpoints")]


def saving_run(kind: str, folder: Path, **options: Any) -> tuple[Run, Checkpoints]:
    run = make_run(kind, 0, [])
    saver = Checkpoints(folder, **options)
    run.callbacks = [saver]
    return run, saver


def test_the_last_two_checkpoints_are_kept_and_one_at_the_end(tmp_path: Path) -> None:
    run, _ = saving_run("plain", tmp_path, every=20)
    run.begin()
    seen: list[list[str]] = []
    while not run.done:
        run.advance()
        if not seen or names(tmp_path) != seen[-1]:
            seen.append(names(tmp_path))
    assert seen[1:4] == [["step-24"], ["step-24", "step-40"], ["step-40", "step-64"]]
    assert ["step-64", "step-80"] in seen, "80 is a phase's end"
    run.go()
    assert names(tmp_path) == ["step-208"]


def test_by_default_the_ends_of_phases_are_saved_if_that_takes_little_time(tmp_path: Path) -> None:
    run, saver = saving_run("plain", tmp_path)
    run.begin()
    while run.phase == 0:
        run.advance()
        assert names(tmp_path) == ([] if run.phase == 0 else ["step-80"])
    saver._seconds = 1e9  # as if that had taken years
    while run.phase == 1:
        run.advance()
    assert names(tmp_path) == ["step-80"]
    saver._saved_at -= 301.0
    run.advance()
    assert names(tmp_path) == ["step-80", "step-168"]


def test_none_but_the_last_is_saved_on_request(tmp_path: Path) -> None:
    run, _ = saving_run("plain", tmp_path, every=0)
    run.begin()
    while not run.done:
        run.advance()
        assert names(tmp_path) == []
    run.go()
    assert names(tmp_path) == ["step-208"]


def test_saving_does_not_change_a_run(tmp_path: Path) -> None:
    for kind in KINDS:
        plain = make_run(kind, 0, [])
        plain.go()
        run, _ = saving_run(kind, tmp_path / kind, every=1)
        run.go()
        assert final_state(run) == final_state(plain)


def test_the_best_checkpoint_of_the_last_phase_is_kept(tmp_path: Path) -> None:
    run, saver = saving_run("plain", tmp_path, every=8, keep_best="average_score")
    run.go()
    last = [now for now in run.result.evaluations if now.phase == 2]
    averages = [sum(now.scores[:2]) / 2 for now in last]
    best = last[averages.index(max(averages))].step
    assert saver.best is not None
    assert saver.best[:2] == [2, max(averages)]
    assert names(tmp_path) == sorted({f"step-{best}", "step-208"}, key=lambda n: int(n[5:]))
    assert Checkpoint.open(tmp_path / "checkpoints" / f"step-{best}").step == best


def test_less_forgetting_is_better(tmp_path: Path) -> None:
    run, saver = saving_run("plain", tmp_path, keep_best="forgetting")
    run.go()
    assert saver.best is not None
    last = [now for now in run.result.evaluations if now.phase == 2]
    lost = []
    for now in last:
        cut = [e for e in run.result.evaluations if e.step <= now.step]
        lost.append(_forgetting(run, cut))
    assert saver.best[1] == -min(lost)


def _forgetting(run: Run, evaluations: list[Any]) -> float:
    value = replace(run.result, evaluations=evaluations).as_if_ended().forgetting
    assert value is not None
    return value


def test_checkpoints_of_a_course_that_was_given_up_are_removed(tmp_path: Path) -> None:
    run, _ = saving_run("plain", tmp_path, every=8)
    run.begin()
    while run.steps < 64:
        run.advance()
    assert names(tmp_path) == ["step-56", "step-64"]
    again, _ = saving_run("plain", tmp_path, every=8)
    again.load(tmp_path / "checkpoints" / "step-56")
    (tmp_path / "checkpoints" / "step-64" / "state.json").write_text("damaged")
    again.advance()
    assert names(tmp_path) == ["step-56", "step-64-2"]
    Checkpoint.open(tmp_path / "checkpoints" / "step-64-2")


def test_wrong_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="checkpoint_every is -1; it must be 0 or more"):
        Checkpoints(tmp_path, every=-1)
    with pytest.raises(ValueError, match="keep_best is 'accuracy'; choose one of average_score"):
        Checkpoints(tmp_path, keep_best="accuracy")
