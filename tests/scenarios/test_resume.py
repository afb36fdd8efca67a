"""Runs that were stopped go on from the command line as if they never had been."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from run_files import fails, result_of
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from everloop.loop import Checkpoint, SupervisedLearner
from everloop.loop.checkpoint import checkpoints
from everloop.scenarios import Experiment, SplitDigits
from everloop.scenarios.cli import main
from everloop.scenarios.status import read_status, write_status

PLAIN = ["run", "split-digits", "--tasks", "0-1,2-3", "--strategies", "ewc,replay"]
QUICK = [*PLAIN, "--iterations", "8", "--quiet"]
"""Two tasks of 8 batches of 32 examples: 512 steps."""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@contextmanager
def interrupted(at: int, *numbers: int) -> Iterator[None]:
    """Send signals to this process in the update with number `at`, which is not the first."""
    advance, calls = SupervisedLearner.advance, [0]

    def signalling(learner: SupervisedLearner) -> int:
        calls[0] += 1
        if calls[0] == at:
            for number in numbers:
                os.kill(os.getpid(), number)
        return advance(learner)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SupervisedLearner, "advance", signalling)
        yield


def status(folder: Path | str = "x") -> str:
    found = read_status(Path(folder))
    assert found is not None
    return found.status


def names(folder: str = "x") -> list[str]:
    return [path.name for path in checkpoints(Path(folder) / "checkpoints")]


def curves(folder: Path | str) -> dict[str, list[tuple[int, float]]]:
    """Every curve of TensorBoard, as its page shows it; a point that is there twice is one."""
    events = EventAccumulator(str(folder), {"scalars": 0}).Reload()
    return {
        tag: [point for point, _ in groupby((p.step, p.value) for p in events.Scalars(tag))]
        for tag in events.Tags()["scalars"]
    }


def assert_same_runs(a: Path | str, b: Path | str) -> None:
    """Two runs have the same result, weights, final state and curves."""
    assert result_of(a) == result_of(b)
    one, other = (load_file(Path(folder) / "weights.safetensors") for folder in (a, b))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    states = [
        Checkpoint.open(checkpoints(Path(folder) / "checkpoints")[-1]).state() for folder in (a, b)
    ]
    for part in ("learner", "generators"):
        assert flat(states[0][part]) == flat(states[1][part])
    assert curves(a) == curves(b)


def flat(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [x for key in value for x in (str(key), *flat(value[key]))]
    if isinstance(value, list | tuple):
        return [x for part in value for x in flat(part)]
    return [value.tolist()] if hasattr(value, "tolist") else [value]


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
    ids=["Ctrl-C", "SIGTERM"],
)
@pytest.mark.parametrize("at", [3, 8, 9], ids=["mid-task", "end of a task", "begin of a task"])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(
    number: int, code: int, word: str, at: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*QUICK, "--out", "whole"]) == 0
    capsys.readouterr()
    with interrupted(at, number):
        assert main([*QUICK, "--out", "x"]) == code
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == (
        f"everloop: error: {word} at step {32 * at}; go on with it: everloop resume x"
    )
    assert lines[:-1] == (
        ["stopping after this update to save the run; Ctrl-C again stops at once"]
        if number == signal.SIGINT
        else []
    )
    assert status() == "stopped"
    assert names()[-1] == f"step-{32 * at}"
    assert Path("x/weights.safetensors").exists()
    assert main(["resume", "x", "--quiet"]) == 0
    assert status() == "finished"
    assert_same_runs("x", "whole")


def test_a_second_ctrl_c_stops_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with interrupted(3, signal.SIGINT, signal.SIGINT):
        assert main([*QUICK, "--out", "x"]) == 130
    assert "at step 64; its log is in x" in capsys.readouterr().err
    assert names() == [], "the update with number 3 was not finished, and nothing saved"
    assert status() == "stopped"
    fails(["resume", "x"], capsys, "x has no checkpoint yet; start it over: everloop run --config")


def test_a_run_stopped_many_times_is_still_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUICK, "--out", "whole"]) == 0
    with interrupted(2, signal.SIGINT):
        assert main([*QUICK, "--out", "x"]) == 130
    for at in (1, 4, 2, 1):
        with interrupted(at, signal.SIGTERM):
            assert main(["resume", "x", "--quiet"]) == 143
    assert main(["resume", "x", "--quiet"]) == 0
    assert_same_runs("x", "whole")


def begun(*words: str) -> subprocess.Popen[bytes]:
    """Start a run in the folder x, and return its process when it has saved a checkpoint."""
    long = [*PLAIN, "--iterations", "400", "--quiet", "--checkpoint-every", "640", "--out", "x"]
    process = subprocess.Popen(
        [sys.executable, "-m", "everloop", *long, *words], stderr=subprocess.DEVNULL
    )
    while not names():
        assert process.poll() is None
        time.sleep(0.01)
    return process


def test_a_run_that_was_killed_says_so_and_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    process = begun()
    fails(["resume", "x"], capsys, "another process is running x; wait for it, or stop it")
    fails([*QUICK, "--out", "x", "--overwrite"], capsys, "another run is writing to x")
    assert status() == "running"
    process.kill()
    process.wait()
    assert json.loads(Path("x/status.json").read_text())["status"] == "running"
    assert status() == "killed"
    assert json.loads(Path("x/status.json").read_text())["status"] == "killed"
    words = [*PLAIN, "--iterations", "400", "--quiet", "--out"]
    fails(
        [*words, "x"],
        capsys,
        "x holds an unfinished run; go on with it: everloop resume x; or replace it: --overwrite",
    )
    assert main(["resume", "x", "--quiet"]) == 0
    assert main([*words, "whole"]) == 0
    assert_same_runs("x", "whole")


def test_a_complete_run_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUICK, "--out", "x"]) == 0
    capsys.readouterr()
    assert main(["resume", "x"]) == 0
    out = capsys.readouterr().out
    assert "x is already complete" in out
    assert "average accuracy" in out
    assert main(["resume", "x", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(Path("x/result.json").read_text())


def stopped_at(*steps: int) -> None:
    """Leave a stopped run in the folder x, with checkpoints at these multiples of 32."""
    with interrupted(steps[0] // 32, signal.SIGINT):
        assert main([*QUICK, "--out", "x"]) == 130
    for before, step in pairwise(steps):
        with interrupted((step - before) // 32, signal.SIGINT):
            assert main(["resume", "x", "--quiet"]) == 130


def test_what_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    fails(["resume", "empty"], capsys, "empty holds no run: it has no config.yaml")
    fails(["resume", "nothing"], capsys, "nothing holds no run")
    fails(["resume"], capsys, "no folder is named; write everloop resume FOLDER")
    fails(["resume", "x", "y"], capsys, "'y' is not expected here")
    stopped_at(64, 96)
    capsys.readouterr()
    fails(
        ["resume", "x", "--checkpoint", "step-5"],
        capsys,
        "x has no checkpoint 'step-5'; choose one of step-64, step-96",
    )


def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_offered(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*QUICK, "--out", "whole"]) == 0
    stopped_at(64, 96)
    capsys.readouterr()
    damaged = Path("x/checkpoints/step-96/tensors.safetensors")
    damaged.write_bytes(damaged.read_bytes()[:-1])
    fails(
        ["resume", "x"],
        capsys,
        "x/checkpoints/step-96 is damaged: tensors.safetensors has another checksum; go on from "
        "another one: everloop resume x --checkpoint step-64",
    )
    assert main(["resume", "x", "--checkpoint", "step-64", "--quiet"]) == 0
    assert_same_runs("x", "whole")


def test_changed_settings_and_versions_are_refused_unless_forced(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_at(64)
    capsys.readouterr()
    config = Path("x/config.yaml")
    before = config.read_text()
    config.write_text(before.replace("iterations: 8", "iterations: 9"))
    fails(
        ["resume", "x"],
        capsys,
        "iterations is 9, but was 8 when the run was saved; undo that, or go on with other results "
        "by --force",
    )
    config.write_text(before)
    versions = {"torch": "0.1", "numpy": "1.0"}
    monkeypatch.setattr("everloop.scenarios.resume.versions", lambda: versions)
    fails(["resume", "x"], capsys, "the version of torch is 0.1, but was ")
    assert main(["resume", "x", "--force"]) == 0
    assert "note: the version of torch is 0.1, but was " in capsys.readouterr().out


def test_a_checkpoint_of_another_network_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    stopped_at(64)
    capsys.readouterr()
    config = Path("x/config.yaml")
    config.write_text(config.read_text().replace("strategies:\n- ewc\n", "strategies:\n- si\n"))
    fails(["resume", "x", "--force"], capsys, "the state belongs to the strategies ewc, replay")
    assert status() == "failed"


def test_a_failed_run_says_why_and_goes_on_when_the_cause_is_gone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([*QUICK, "--out", "whole"]) == 0
    advance = SupervisedLearner.advance

    def failing(learner: SupervisedLearner) -> int:
        if learner.steps >= 320:
            raise RuntimeError("the sensor is\nunplugged")
        return advance(learner)

    with monkeypatch.context() as patch:
        patch.setattr(SupervisedLearner, "advance", failing)
        assert main([*QUICK, "--out", "x"]) == 2
    found = read_status(Path("x"))
    assert found is not None
    assert (found.status, found.error) == ("failed", "RuntimeError: the sensor is unplugged")
    assert Path("x/error.txt").exists()
    assert names() == ["step-256"], "the end of the first task"
    assert main(["resume", "x", "--quiet"]) == 0
    assert not Path("x/error.txt").exists()
    assert_same_runs("x", "whole")


def test_the_settings_of_saving_are_kept(capsys: pytest.CaptureFixture[str]) -> None:
    saving = ["--checkpoint-every", "32", "--keep-best", "average_score"]
    with interrupted(2, signal.SIGINT):
        assert main([*QUICK, *saving, "--out", "x"]) == 130
    with interrupted(9, signal.SIGINT):
        assert main(["resume", "x", "--quiet"]) == 130
    kept = Checkpoint.open(Path("x/checkpoints/step-352"))
    assert kept.about["saving"] == {"checkpoint_every": 32, "keep_best": "average_score"}
    with interrupted(1, signal.SIGINT):
        assert main(["resume", "x", "--quiet", "--checkpoint-every", "0"]) == 130
    (last,) = [path for path in checkpoints(Path("x/checkpoints")) if path.name == "step-384"]
    assert Checkpoint.open(last).about["saving"]["checkpoint_every"] == 0
    capsys.readouterr()
    fails([*QUICK, "--keep-best", "speed"], capsys, "keep_best is 'speed'; choose one of")
    fails([*QUICK, "--checkpoint-every", "-3"], capsys, "checkpoint_every is -3")


def test_an_experiment_in_python_goes_on(tmp_path: Path) -> None:
    def experiment(out: str) -> Experiment:
        return Experiment(
            SplitDigits(iterations=8, tasks=["0-1", "2-3"]), "ewc,replay", out=out, overwrite=True
        )

    whole = experiment("whole").run()
    with interrupted(3, signal.SIGINT), pytest.raises(KeyboardInterrupt):
        experiment("x").run()
    (saved,) = checkpoints(Path("x/checkpoints"))
    again = experiment("x").resume(Checkpoint.open(saved))
    assert again.evaluations == whole.evaluations
    assert_same_runs("x", "whole")


def test_an_unreadable_status_is_unknown(tmp_path: Path) -> None:
    assert read_status(tmp_path) is None
    for text in ("", "[]", '{"state": 1}'):
        (tmp_path / "status.json").write_text(text)
        assert read_status(tmp_path) is None
    write_status(tmp_path, "failed", "why")
    found = read_status(tmp_path)
    assert found is not None
    assert (found.status, found.error, found.process) == ("failed", "why", os.getpid())
