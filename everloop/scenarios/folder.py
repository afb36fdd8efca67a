"""The folder of a run: locked while the run goes, and an earlier run's files are kept until the new
one is complete.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from everloop.loop import Result

CONFIG, ENVIRONMENT, RESULT, ERROR = "config.yaml", "environment.json", "result.json", "error.txt"
EVENTS = "events.out.tfevents.*"
OLD = ".old"


class Unwritable(OSError):
    """A run's folder can't be made, or nothing can be written into it."""


def files_of(folder: Path) -> list[Path]:
    """The files that a run, finished or not, has left in `folder`.

    Raises ValueError if it, or where it lies, is a file.
    """
    for place in (folder, *folder.parents):
        if place.exists() and not place.is_dir():
            raise ValueError(f"{place} is a file; name a folder")
    named = [folder / name for name in (CONFIG, ENVIRONMENT, RESULT, ERROR)]
    return [path for path in named if path.exists()] + sorted(folder.glob(EVENTS))


def complete(folder: Path) -> bool:
    """True if `folder` holds the result of a run whose every phase has ended."""
    try:
        return Result.load(folder).complete
    except ValueError:
        return False


def check_free(folder: Path) -> None:
    """Raise FileExistsError if `folder` holds a run."""
    if files_of(folder):
        what = "a run" if complete(folder) else "an unfinished run"
        raise FileExistsError(
            f"{folder} already holds {what}; choose another --out, or replace it with --overwrite"
        )


def holds(folder: Path, config: str) -> Literal["nothing", "an unfinished run", "a complete run"]:
    """What `folder` holds of the run whose config.yaml is `config`.

    Raises FileExistsError if it holds a run of other settings.
    """
    if not files_of(folder):
        return "nothing"
    try:
        same = (folder / CONFIG).read_text() == config
    except (OSError, UnicodeDecodeError):
        same = False
    if not same:
        check_free(folder)
    return "a complete run" if complete(folder) else "an unfinished run"


@contextmanager
def opened(folder: Path, files: Mapping[str, str], overwrite: bool) -> Iterator[None]:
    """The folder for the time of a run, with `files` (name -> content) written into it.

    Files of an earlier run are renamed to *.old, and deleted when the new run is over. If that
    breaks down they stay.

    Raises: FileExistsError: If another run is writing into it, or it holds a run and `overwrite` is
        False. Unwritable: If it can't be made or written into.
    """
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise FileExistsError(
            f"another run is writing into {folder}; wait for it, or choose another --out"
        ) from None
    except OSError as error:
        what = "written into" if folder.is_dir() else "made"
        raise Unwritable(
            f"the folder {folder} can't be {what}: {error.strerror or error}; choose another --out"
        ) from None
    try:
        if not overwrite:
            check_free(folder)
        for name, content in files.items():  # all is written before anything old is touched
            (folder / f"{name}.new").write_text(content)
        _set_aside(folder)
        for name in files:
            (folder / f"{name}.new").replace(folder / name)
        yield
        for old in folder.glob(f"*{OLD}"):
            old.unlink()
    finally:
        for name in files:
            (folder / f"{name}.new").unlink(missing_ok=True)
        lock.release()


def _set_aside(folder: Path) -> None:
    """Rename what an earlier run left; of a broken attempt to replace it, delete that attempt's
    files instead.
    """
    kept, found = list(folder.glob(f"*{OLD}")), files_of(folder)
    if kept and not complete(folder):
        for path in found:
            path.unlink()
        return
    for path in kept:
        path.unlink()
    for i, path in enumerate(found):
        is_events = path.match(EVENTS)
        os.replace(path, folder / (f"events-{i}{OLD}" if is_events else f"{path.name}{OLD}"))
