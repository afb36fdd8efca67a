"""Guards from the command line: divergence, rollbacks and early stopping."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from run_files import asked, fails, result_of
from test_resume import assert_same_runs, curves, interrupted

from everloop.loop import Checkpoint, Diverged, SupervisedLearner
from everloop.scenarios import Experiment, SplitDigits
from everloop.scenarios.cli import main

PLAIN = ["run", "split-digits", "--tasks", "0-1,2-3", "--strategies", "ewc,replay"]
QUICK = [*PLAIN, "--iterations", "8"]
"""Two tasks of 8 batches of 32 examples: 512 steps."""
pytestmark = pytest.mark.filterwarnings("always:.*the run goes back:UserWarning")
BACK = ["--on-divergence", "rollback"]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@contextmanager
def diverging(at: int, until: float) -> Iterator[None]:
    """Let training diverge at a step, as long as the rate is above a factor of what was set."""
    advance = SupervisedLearner.advance

    def failing(learner: SupervisedLearner) -> int:
        done = advance(learner)
        if learner.steps == at and learner.rate_factor > until:
            raise Diverged(f"the loss is nan at step {at}; try a lower learning rate")
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SupervisedLearner, "advance", failing)
        yield


def test_a_run_that_is_killed_after_a_rollback_ends_as_one_that_was_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [*QUICK, *BACK, "--checkpoint-every", "64"]
    with diverging(352, until=0.25):
        assert main([*words, "--out", "whole"]) == 0
        note = "note: the loss is nan at step 352; the run goes back to step 320, with 0.25 of"
        assert note in capsys.readouterr().out
        with interrupted(14, 15):
            assert main([*words, "--out", "x", "--quiet"]) == 143
        assert "step 352" not in capsys.readouterr().err  # it was stopped after the rollbacks
        assert main(["resume", "x", "--quiet"]) == 0
    assert_same_runs("whole", "x")
    assert [tuple(r.values())[:3] for r in result_of("x")["rollbacks"]] == [
        (352, 320, 0.5),
        (352, 320, 0.25),
    ]
    assert curves("x")["guard/rollback"][-1] == (320, 0.25)
    rates = dict(curves("x")["train/learning_rate"])
    assert rates[256] == pytest.approx(1e-3)
    assert rates[512] == pytest.approx(2.5e-4)


def test_a_run_that_stops_names_the_way_on_which_works(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with diverging(352, until=0.5):
        command = "everloop resume x --on-divergence rollback"
        fails(
            [*QUICK, "--quiet", "--out", "x"],
            capsys,
            "the loss is nan at step 352",
            "the last good checkpoint is x/checkpoints/step-256",
            f": {command}",
        )
        Checkpoint.open("x/checkpoints/step-256")
        assert main([*command.split()[1:], "--quiet"]) == 0
    assert [r["from_step"] for r in result_of("x")["rollbacks"]] == [256]
    assert yaml.safe_load(Path("x/config.yaml").read_text())["on_divergence"] == "rollback"


def test_after_all_rollbacks_the_run_stops_and_goes_on_with_more(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with diverging(352, until=0.25):
        fails(
            [*QUICK, *BACK, "--max-rollbacks", "1", "--quiet", "--out", "x"],
            capsys,
            "it was rolled back once, and the learning rate is 0.5 of what was set",
            ": everloop resume x --max-rollbacks 2",
        )
        assert main(["resume", "x", "--max-rollbacks", "2", "--quiet"]) == 0
    assert [r["rate_factor"] for r in result_of("x")["rollbacks"]] == [0.5, 0.25]


def test_a_run_without_a_checkpoint_starts_over(capsys: pytest.CaptureFixture[str]) -> None:
    words = [*QUICK, "--quiet", "--out", "x", "--max-loss", "0.001"]
    over = "everloop run --config x/config.yaml --out x --overwrite --on-divergence rollback"
    fails(words, capsys, "above max_loss 0.001", "raise max_loss", "no checkpoint yet", over)
    assert main([*over.split()[1:], "--quiet", "--max-loss", "1000"]) == 0
    assert result_of("x")["rollbacks"] == []


def test_guards_that_never_act_change_nothing() -> None:
    assert main([*QUICK, "--quiet", "--out", "a"]) == 0
    assert main([*QUICK, *BACK, "--max-loss", "1000", "--quiet", "--out", "b"]) == 0
    assert_same_runs("a", "b")


def test_early_stopping_ends_tasks_and_is_resumed() -> None:
    words = [*PLAIN, "--iterations", "40", "--eval-every", "64", "--quiet", "--held-out", "200"]
    words += ["--early-stopping", "2", "--restore-best"]
    assert main([*words, "--out", "whole"]) == 0
    assert result_of("whole")["steps"] < 2560
    with interrupted(12, 15):
        assert main([*words, "--out", "x"]) == 143
    assert main(["resume", "x", "--quiet"]) == 0
    assert_same_runs("whole", "x")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--max-loss", "-1"], "max_loss is -1.0; it must be finite and above 0"),
        (["--on-divergence", "go"], "on_divergence is 'go'; it must be one of stop, rollback"),
        (["--max-rollbacks", "0"], "max_rollbacks is 0; it must be 1 or more"),
        (["--early-stopping", "0"], "early_stopping is 0; it must be 1 or more evaluations"),
        (["--restore-best"], "early_stopping is not set; give --early-stopping too"),
        (
            ["--early-stopping", "1", "--eval-every", "1000"],
            "eval_every is 1000, but the longest phase has 256 steps",
        ),
    ],
)
def test_a_wrong_setting_is_one_line_before_training(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fails([*QUICK, *words], capsys, said)
    assert not Path("runs").exists()


def test_a_note_says_which_score_stops() -> None:
    words = ["split-digits", "--early-stopping", "1"]
    assert any("the score of the test split" in note for note in asked(*words).notes)
    assert not any("test split" in note for note in asked(*words, "--held-out", "50").notes)
    control = asked("switching-plant", "--early-stopping", "1")
    assert any("this scenario has no other one" in note for note in control.notes)
    unused = asked("split-digits", "--max-rollbacks", "7").notes
    assert "max_rollbacks has no effect without --on-divergence rollback" in unused


def test_settings_of_guards_are_in_the_file_of_settings_only_if_they_are_given() -> None:
    given = Experiment(SplitDigits(), max_loss=5.0, early_stopping=2).config()
    assert {"max_loss": 5.0, "early_stopping": 2}.items() <= given.items()
    assert not {"on_divergence", "max_rollbacks", "restore_best"} & given.keys()
    json.dumps(given)
