"""Several runs from one command: equal to single runs, kept if complete, named if they fail."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from filelock import FileLock
from run_files import result_of

from everloop.loop.disk import remove
from everloop.scenarios.cli import main
from everloop.scenarios.jobs import run_all
from everloop.scenarios.status import write_status

HERE = Path(__file__).parent
SHORT = ["run", "split-digits", "--iterations", "3"]
SHORT += ["--eval-every", "100000"]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_sets_of_strategies_and_seeds_are_the_runs_one_by_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert (
        main(
            [
                *SHORT,
                "--strategies",
                "none;ewc,replay",
                "--ewc.strength",
                "3",
                "--seeds",
                "1-2",
                "--jobs",
                "2",
                "--json",
            ]
        )
        == 0
    )
    told = capsys.readouterr()
    results = json.loads(told.out)
    assert [(r["strategies"], r["seed"]) for r in results] == [
        (["none"], 1),
        (["none"], 2),
        (["ewc", "replay"], 1),
        (["ewc", "replay"], 2),
    ]
    assert "compare them: everloop compare runs/split-digits/ewc+replay-" in told.err
    for strategies in ("none", "ewc,replay"):
        for seed in ("1", "2"):
            words = [
                *SHORT,
                "--strategies",
                strategies,
                *(["--ewc.strength", "3"] if "ewc" in strategies else []),
            ]
            assert (
                main([*words, "--seed", seed, "--out", f"alone-{strategies}-{seed}", "--quiet"])
                == 0
            )
            (folder,) = Path("runs/split-digits").glob(f"{strategies.replace(',', '+')}-*/{seed}")
            assert result_of(folder) == result_of(Path(f"alone-{strategies}-{seed}"))


@pytest.mark.parametrize("saved", [True, False], ids=["saved", "not saved"])
def test_complete_runs_are_kept_and_others_go_on_or_begin_again(
    saved: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SHORT, "--seeds", "0-1", "--out", "grid", "--quiet"]) == 0
    first, second = sorted(Path("grid").glob("none-*/*"))
    content = json.loads((second / "result.json").read_text())
    (second / "result.json").write_text(
        json.dumps({**content, "evaluations": content["evaluations"][:-1]})
    )
    write_status(second, "stopped")
    if not saved:
        remove(second / "checkpoints")
    before = (first / "result.json").read_bytes()
    capsys.readouterr()
    assert main([*SHORT, "--seeds", "0-1", "--out", "grid"]) == 0
    lines = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith("split-digits")
    ]
    assert (
        lines[0]
        == f"split-digits none seed 0: already complete in {first}; use --overwrite to run it again"
    )
    word = "resumed" if saved else "started over"
    assert lines[1] == f"split-digits none seed 1: {word}, writing to {second}"
    assert lines[2].startswith("split-digits none seed 1: average accuracy ")
    assert (first / "result.json").read_bytes() == before
    assert json.loads((second / "result.json").read_text())["complete"]


def test_a_run_that_fails_is_named_and_the_others_go_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HERE), prepend=os.pathsep)
    Path("mine.py").write_text(
        "from own_parts import Failing\n"
        "from everloop.scenarios import SplitDigits\n"
        "class Sometimes(Failing):\n"
        "    name = 'sometimes'\n"
        "    def make_world(self, split, num_envs, seed):\n"
        "        kind = Failing if seed else SplitDigits\n"
        "        return kind.make_world(self, split, num_envs, seed)\n"
    )
    assert (
        main(
            [
                "run",
                "mine:Sometimes",
                "--iterations",
                "10",
                "--seeds",
                "1,0",
                "--out",
                "grid",
            ]
        )
        == 2
    )
    told = capsys.readouterr()
    assert "sometimes none seed 0: average accuracy" in told.out
    assert told.err.startswith(
        "everloop: error: 1 of 2 runs failed: sometimes none seed 1: RuntimeError at step 480"
    )
    assert told.err.count("\n") == 1


def test_a_mistake_is_found_before_the_first_run_begins(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SHORT, "--strategies", "none;packnet", "--seeds", "0-4"]) == 2
    assert "packnet" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_a_killed_process_loses_its_own_run_only() -> None:
    Path("mine.py").write_text(
        "import os, signal\n"
        "from everloop.scenarios import SplitDigits\n"
        "class Killed(SplitDigits):\n"
        "    name = 'killed'\n"
        "    def make_world(self, split, num_envs, seed):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ends: dict[int, str | None] = {}
    commands = [["run", "mine:Killed", *SHORT[2:]], [*SHORT, "--out", "x"], ["list"]]
    run_all(commands, 1, ends.__setitem__)
    assert ends == {0: "its process ended with status -9", 1: None, 2: None}


def test_processes_do_not_outlive_the_one_that_started_them() -> None:
    """An error in the caller stops the processes that are still running."""
    long = [*SHORT, "--iterations", "100000", "--quiet", "--out"]

    def broken(i: int, error: str | None) -> None:
        raise ValueError("enough")

    began = time.monotonic()
    with pytest.raises(ValueError, match="enough"):
        run_all([[*long, "long"], ["list"]], 2, broken)
    assert time.monotonic() - began < 60
    assert main([*SHORT, "--out", "long", "--overwrite", "--quiet"]) == 0, (
        "its folder is not locked any more"
    )


def begun(folder: Path, *words: str) -> subprocess.Popen[str]:
    """Start a long command and return its process when all of its runs have begun to learn."""
    long = [sys.executable, "-m", "everloop", *SHORT, "--iterations", "100000", "--quiet", *words]
    process = subprocess.Popen(
        long,
        cwd=folder,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # tests that a script runs in the background inherit that Ctrl-C is ignored
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    while len(list(folder.glob("runs/*/*/*/result.json"))) < (2 if "--seeds" in words else 1):
        time.sleep(0.1)
        assert process.poll() is None
    return process


def errors_of(process: subprocess.Popen[str]) -> str:
    """Return what a process that is about to end has written to stderr."""
    try:
        return process.communicate(timeout=60)[1]
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise


def released(folder: Path, seconds: float = 60) -> bool:
    """Return True if no process writes to the runs' folders any more."""
    locks = list(folder.glob("runs/*/*/*/.lock"))
    assert locks
    for lock in locks:
        with FileLock(lock, timeout=seconds):
            pass
    return True


@pytest.mark.parametrize(
    ("number", "status", "word"),
    [
        pytest.param(signal.SIGINT, 130, "interrupted", id="Ctrl-C"),
        pytest.param(signal.SIGTERM, 143, "terminated", id="SIGTERM", marks=pytest.mark.slow),
    ],
)
def test_a_signal_stops_all_runs_in_one_line(
    number: int, status: int, word: str, tmp_path: Path
) -> None:
    process = begun(tmp_path, "--seeds", "0-1", "--jobs", "2")
    process.send_signal(number)
    errors = errors_of(process)
    assert process.returncode == status
    assert errors == f"everloop: error: {word}; the same command runs the rest\n"
    assert released(tmp_path, seconds=0)


def test_sigterm_ends_a_run_in_one_line_and_its_result_so_far_stays(tmp_path: Path) -> None:
    process = begun(tmp_path)
    process.send_signal(signal.SIGTERM)
    errors = errors_of(process)
    assert process.returncode == 143
    assert errors.startswith("everloop: error: terminated at step ")
    (folder,) = tmp_path.glob("runs/*/*/0")
    assert errors.endswith(f"; go on with it: everloop resume {folder.relative_to(tmp_path)}\n")
    assert errors.count("\n") == 1
    (file,) = tmp_path.glob("runs/*/*/0/result.json")
    assert len(json.loads(file.read_text())["evaluations"]) >= 1


def test_runs_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    process = begun(tmp_path, "--seeds", "0-1", "--jobs", "2")
    process.kill()
    errors_of(process)
    assert released(tmp_path)
