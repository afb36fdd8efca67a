"""Run several commands in parallel, each in its own process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from types import FrameType
from typing import BinaryIO, cast

CHILD = "import sys; from everloop.scenarios.jobs import child; sys.exit(child())"


class Terminated(KeyboardInterrupt):
    """Raised on SIGTERM, so that everything ends as after Ctrl-C."""


def end_on_sigterm() -> None:
    """Make SIGTERM raise `Terminated` in this process."""

    def terminated(signum: int, frame: FrameType | None) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, terminated)


def child() -> int:
    """Run the command line in a process of `run_all` and return its exit status.

    The process ends when its parent does.
    """
    from everloop.scenarios.cli import main

    def watch() -> None:
        # Nothing is ever written to this pipe, so this returns when the parent has ended.
        os.read(0, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    end_on_sigterm()
    threading.Thread(target=watch, daemon=True).start()
    sys.argv[0] = "everloop"
    return main()


def run_all(
    commands: Sequence[Sequence[str]],
    jobs: int,
    ended: Callable[[int, str | None], None],
    started: Callable[[int], None] = lambda i: None,
) -> None:
    """Run `everloop WORDS` for each of `commands`, each in its own process.

    An error in a callback, Ctrl-C and SIGTERM stop all processes.

    Args:
        commands: The words of each command after `everloop`.
        jobs: Number of processes at the same time, 1 or more.
        ended: Called when a command has ended, with its position in `commands` and the last line of
            its error, or None if it succeeded.
        started: Called before a command begins, with its position in `commands`.
    """
    waiting = deque(enumerate(commands))
    going: dict[int, tuple[subprocess.Popen[bytes], BinaryIO]] = {}
    watched, ours = os.pipe()  # closes with this process
    try:
        while waiting or going:
            while waiting and len(going) < jobs:
                i, words = waiting.popleft()
                started(i)
                errors = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115
                process = subprocess.Popen(
                    [sys.executable, "-c", CHILD, *words],
                    stdin=watched,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                )
                going[i] = process, errors
            for i, (process, errors) in list(going.items()):
                if process.poll() is not None:
                    del going[i]
                    said = _last_line(errors)
                    ended(i, said if process.returncode else None)
            time.sleep(0.02)
    finally:
        for process, _ in going.values():
            process.terminate()
        for process, errors in going.values():
            process.wait()
            errors.close()
        os.close(watched)
        os.close(ours)


def _last_line(errors: BinaryIO) -> str:
    """Return the last line that was written, without the prefix of everloop's errors."""
    errors.seek(0)
    lines = errors.read().decode(errors="replace").strip().splitlines()
    errors.close()
    return lines[-1].removeprefix("everloop: error: ") if lines else "it ended without a message"
