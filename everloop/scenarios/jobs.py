"""Several runs of the command line, as many at once as are wanted."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import BinaryIO, cast


def run_all(commands: Sequence[Sequence[str]], jobs: int, ended: Callable[[int, str | None], None]) -> None:
    """Run `everloop WORDS` for each of `commands`, `jobs` at once, each in a process of its own.

    When this is left early, by an error in `ended` or by Ctrl-C, the processes are stopped.

    Args:
        ended: Called with a command's position and the last line of its error, or None, as each ends.
    """
    waiting = deque(enumerate(commands))
    going: dict[int, tuple[subprocess.Popen[bytes], BinaryIO]] = {}
    try:
        while waiting or going:
            while waiting and len(going) < jobs:
                i, words = waiting.popleft()
                errors = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115
                process = subprocess.Popen([sys.executable, "-m", "everloop", *words], stdout=subprocess.DEVNULL, stderr=errors)
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


def _last_line(errors: BinaryIO) -> str:
    """The last line that was written, without the program's own name."""
    errors.seek(0)
    lines = errors.read().decode(errors="replace").strip().splitlines()
    errors.close()
    return lines[-1].removeprefix("everloop: error: ") if lines else "it ended without a message"
