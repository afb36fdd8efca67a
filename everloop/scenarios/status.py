"""The file status.json of a run: running, stopped, finished or failed."""

from __future__ import annotations

import errno
import json
import os
import platform
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from everloop.loop.disk import write_json

STATUS, LOCK = "status.json", ".lock"
State = Literal["running", "stopped", "finished", "failed", "killed"]


@dataclass(frozen=True)
class Status:
    """How a run is doing.

    Args:
        status: "running"; "stopped" by Ctrl-C or SIGTERM; "finished"; "failed" by an error; or
            "killed" if its process has ended without a word.
        error: The error of a failed run in one line.
        process: Number of its process.
        host: Name of its machine.
        changed: When the status changed, in ISO 8601.
    """

    status: State
    error: str | None = None
    process: int = 0
    host: str = ""
    changed: str = ""


def write_status(folder: Path, status: State, error: str | None = None) -> None:
    """Write status.json as a whole, or not at all.

    Raises:
        OSError: If it can't be written.
    """
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    content = Status(status, error, os.getpid(), platform.node(), now)
    write_json(folder / STATUS, asdict(content))


def read_status(folder: Path) -> Status | None:
    """Return the status of the run in `folder`; None if it has none that can be read.

    A run that seems to be running, but whose folder is not locked, was killed. The file then says
    so from now on, if it can be written.
    """
    try:
        content: dict[str, Any] = json.loads((folder / STATUS).read_text(encoding="utf-8"))
        found = Status(**content)
    except (OSError, ValueError, TypeError):
        return None
    if found.status != "running" or is_locked(folder):
        return found
    with suppress(OSError):
        write_status(folder, "killed")
    return Status("killed", None, found.process, found.host, found.changed)


def is_locked(folder: Path) -> bool:
    """Return whether a process is writing to the folder of a run."""
    if not (folder / LOCK).exists():
        return False
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError as error:
        return error.errno != errno.EROFS  # nobody can write to a read-only disk
    lock.release()
    return False
