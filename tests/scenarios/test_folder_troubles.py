"""A full disk, a read-only folder and a removed one: one line, and what was saved stays good.

The limits are real. A process may write files up to a size only (RLIMIT_FSIZE), or it loses the
rights to its folder, or the folder is a small disk of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from run_files import result_of

from everloop.loop import Checkpoint
from everloop.loop.checkpoint import checkpoints
from everloop.scenarios.cli import main
from everloop.scenarios.status import read_status

PLAIN = ["split-digits", "--tasks", "0-1,2-3", "--strategies", "ewc,replay", "--quiet"]
QUICK = ["run", *PLAIN, "--iterations", "8", "--checkpoint-every", "64"]
"""Two tasks of 8 batches of 32 examples: 512 steps."""

TROUBLE = """
import ctypes, os, resource, shutil, signal, sys
from pathlib import Path
from everloop.loop import SupervisedLearner
from everloop.scenarios.cli import main

kind, at, *words = sys.argv[1:]
advance, calls, out = SupervisedLearner.advance, [0], Path("x")

def obey_permissions():  # give up the right of root to write anywhere, CAP_DAC_OVERRIDE
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.capget(header, sets) == 0
    sets[0] &= ~(1 << 1)
    assert libc.capset(header, sets) == 0

def happen():
    if kind.isdigit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(kind), int(kind)))
    elif kind == "removed":
        shutil.rmtree(out)
    elif kind == "read-only":
        obey_permissions()
        for folder in (out, out / "checkpoints"):
            folder.chmod(0o555)

def troubled(learner):
    calls[0] += 1
    if calls[0] == int(at):
        happen()
    return advance(learner)

SupervisedLearner.advance = troubled
if at == "0":
    happen()
sys.exit(main(words))
"""


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current folder in which every user may write."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        monkeypatch.chdir(folder)
        yield folder


def fails(kind: str, at: int, words: list[str]) -> str:
    """Run a command that has a trouble before update `at`; return its one line."""
    done = subprocess.run(
        [sys.executable, "-c", TROUBLE, kind, str(at), *words],
        capture_output=True,
        text=True,
        env={**os.environ, "HOME": str(Path.cwd()), "PYTHONDONTWRITEBYTECODE": "1"},
        check=False,
    )
    lines = done.stderr.strip().splitlines()
    assert (done.returncode, len(lines)) == (2, 1), done.stderr
    assert lines[0].startswith("everloop: error: ")
    return lines[0]


def saved() -> list[str]:
    """The names of the checkpoints, all of which open."""
    found = checkpoints(Path("x/checkpoints"))
    for path in found:
        Checkpoint.open(path)
    return [path.name for path in found]


def goes_on() -> None:
    """The run goes on, and its result is that of a run without trouble."""
    assert main(["resume", "x", "--quiet"]) == 0
    assert main([*QUICK, "--out", "whole"]) == 0
    assert result_of("x") == result_of("whole")
    status = read_status(Path("x"))
    assert status is not None
    assert status.status == "finished"


@pytest.mark.parametrize(
    ("size", "at", "what"),
    [
        (200_000, 10, "the checkpoint x/checkpoints/step-320 can't be written"),
        (100, 10, "can't be written"),  # nothing at all
        (1_000, 8, "can't be written"),  # neither the result nor events
    ],
)
def test_a_full_disk_leaves_the_last_checkpoint(here: Path, size: int, at: int, what: str) -> None:
    line = fails(str(size), at, [*QUICK, "--out", "x"])
    assert what in line
    assert "File too large" in line
    assert "free space" in line
    assert line.endswith("go on with it: everloop resume x")
    assert saved()[-1] == ("step-256" if at == 10 else "step-192")
    goes_on()


def test_while_the_disk_is_full_a_resumed_run_says_so_and_goes_on_later(here: Path) -> None:
    fails("200000", 10, [*QUICK, "--out", "x"])
    before = saved()
    assert "File too large" in fails("10", 0, ["resume", "x", "--quiet"])
    assert "File too large" in fails("3000", 0, ["resume", "x", "--quiet"])
    assert saved() == before
    goes_on()


@pytest.mark.parametrize("size", [0, 300, 3_000])
def test_a_disk_that_is_full_from_the_begin_is_named(here: Path, size: int) -> None:
    line = fails(str(size), 0, [*QUICK, "--out", "x"])
    assert "File too large" in line
    assert " x" in line
    assert "free space" in line
    assert main([*QUICK, "--out", "x"]) == 0


def test_a_disk_of_its_own_that_is_full(here: Path) -> None:
    place = here / "x"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a disk is not allowed here")
    try:
        line = fails("none", 0, [*QUICK, "--out", "x"])
        assert "No space left on device" in line
        assert line.endswith("go on with it: everloop resume x")
        assert saved()
        grown = subprocess.run(
            ["mount", "-o", "remount,size=20m", str(place)], capture_output=True, check=False
        )
        assert grown.returncode == 0, grown.stderr
        goes_on()
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_folder_that_becomes_read_only_during_a_run(here: Path) -> None:
    line = fails("read-only", 10, [*QUICK, "--out", "x"])
    assert "the checkpoint x/checkpoints/step-320 can't be written: Permission denied" in line
    assert "make the folder writable" in line
    assert line.endswith("go on with it: everloop resume x")
    assert saved()[-1] == "step-256"
    again = fails("read-only", 0, ["resume", "x", "--quiet"])
    assert "Permission denied" in again
    for folder in (here / "x", here / "x" / "checkpoints"):
        folder.chmod(0o777)
    goes_on()


@pytest.mark.parametrize("at", [6, 8, 12])
def test_a_folder_that_is_removed_during_a_run(here: Path, at: int) -> None:
    line = fails("removed", at, [*QUICK, "--out", "x"])
    assert "its folder is gone, so run it again" in line
    assert not Path("x").exists()
    assert main([*QUICK, "--out", "x"]) == 0


def test_a_cache_that_cannot_be_written_is_named(
    here: Path, surroundings: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(here)
    Path("file").touch()
    monkeypatch.setenv("EVERLOOP_CACHE", str(here / "file" / "cache"))
    line = fails("none", 0, ["run", "split-mnist", "--quiet", "--out", "x"])
    assert f"the cache {here}/file/cache can't be written: Not a directory" in line
    assert line.endswith("name another folder in EVERLOOP_CACHE")
    assert not Path("x").exists()


CACHE = """
import resource, signal
import numpy as np
from everloop.envs.data.cache import cached
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    cached("key", lambda: {"small": np.zeros(10), "large": np.ones(1000)})
except OSError as error:
    print(error)
"""


def test_a_cache_on_a_full_disk_is_named_and_left_clean(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVERLOOP_CACHE", str(here / "cache"))
    done = subprocess.run([sys.executable, "-c", CACHE], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"the cache {here}/cache can't be written: ")
    assert done.stdout.count("\n") == 1
    assert list((here / "cache").iterdir()) == []
