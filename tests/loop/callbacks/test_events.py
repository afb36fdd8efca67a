"""Files of TensorBoard events, and errors if they can't be written."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from everloop.loop.callbacks import events as module
from everloop.loop.callbacks.events import EventFile

FULL = """
import resource, signal, sys
from types import SimpleNamespace

from everloop.loop import TensorBoardLogger, Evaluation, Result
from everloop.contract import ACCURACY

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
logger = TensorBoardLogger(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
result = Result(["a"], [[0]], ACCURACY, [Evaluation(0, None, False, [0.0], [0.0])])
try:
    run = SimpleNamespace(result=result)
    logger.on_run_begin(run)
    for step in range(1, 1000):
        result.evaluations.append(Evaluation(step, 0, False, [1.0], [1.0]))
        logger.on_evaluation(run)
except OSError as error:
    print(error)
    written = len(result.evaluations)
    logger.close()
    logger.close()
print(written)
"""


def test_a_full_disk_raises_one_error_and_prints_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-X", "dev", "-c", FULL, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    message, evaluations = done.stdout.splitlines()
    assert message.startswith(f"TensorBoard events can't be written to {tmp_path}/events.out")
    assert message.endswith(": File too large; free space, or choose another folder")
    assert int(evaluations) == 1  # the settings alone exceed the limit
    assert done.stderr == ""


def test_a_folder_that_cannot_be_created_raises_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"can't be written to .*: .*; free space") as caught:
        EventFile(tmp_path / "file" / "run")
    assert "\n" not in str(caught.value)


def test_writing_starts_no_thread(tmp_path: Path) -> None:
    before = threading.active_count()
    file = EventFile(tmp_path)
    file.scalars({"a": 1.0}, 0)
    assert threading.active_count() == before
    file.close()


def test_writing_to_a_closed_file_raises_an_error(tmp_path: Path) -> None:
    file = EventFile(tmp_path)
    file.close()
    file.close()
    with pytest.raises(OSError, match="is closed"):
        file.scalars({"a": 1.0}, 0)


def test_the_names_of_files_are_in_the_order_in_which_the_files_were_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorBoard reads them in the order of their names, also those of other processes."""
    monkeypatch.setattr("time.time_ns", lambda: 1_700_000_000_123_456_789)  # the clock stands still
    made = []
    for process in (9, 10, 8):
        monkeypatch.setattr("os.getpid", lambda process=process: process)
        made += [EventFile(tmp_path) for _ in range(2)]
    monkeypatch.setattr("time.time_ns", lambda: 1_600_000_000_000_000_000)  # it was put back
    made.append(EventFile(tmp_path))
    names = [file.path.name for file in made]
    assert names == sorted(set(names))
    for file in made:
        file.close()


def test_training_curves_are_written_between_evaluations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    file = EventFile(tmp_path)
    for step, seconds in enumerate([1.0, 9.0, 11.0, 12.0]):
        now[0] = seconds
        file.scalars({"train/loss": seconds}, step)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [0, 1, 2]
    file.close()
