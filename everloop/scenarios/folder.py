"""The folder of a run. It is locked during a run, and old files stay until that is complete."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from everloop.loop import Result
from everloop.loop.callbacks.checkpoints import WEIGHTS
from everloop.loop.checkpoint import checkpoints
from everloop.loop.disk import remove
from everloop.scenarios.status import LOCK, STATUS, State, write_status

CONFIG, ENVIRONMENT, RESULT, ERROR = "config.yaml", "environment.json", "result.json", "error.txt"
CHECKPOINTS = "checkpoints"
FILES = (CONFIG, ENVIRONMENT, RESULT, ERROR, STATUS, CHECKPOINTS, WEIGHTS)
"""What a run leaves in its folder, besides its events."""
EVENTS = "events.out.tfevents.*"
OLD = ".old"


class Unwritable(OSError):
    """The folder of a run can't be created or written to."""


def files_of(folder: Path) -> list[Path]:
    """Return the files of a run, complete or not, in `folder`.

    Raises:
        ValueError: If `folder` or one of its parents is a file.
    """
    for place in (folder, *folder.parents):
        if place.exists() and not place.is_dir():
            raise ValueError(f"{place} is a file; choose a folder")
    named = [folder / name for name in FILES]
    return [path for path in named if path.exists()] + sorted(folder.glob(EVENTS))


def complete(folder: Path) -> bool:
    """Return True if `folder` holds the result of a run with all phases done."""
    try:
        return Result.load(folder).complete
    except ValueError:
        return False


def check_free(folder: Path) -> None:
    """Raise FileExistsError if `folder` holds a run."""
    if files_of(folder):
        what = "a complete run" if complete(folder) else "an unfinished run"
        raise FileExistsError(
            f"{folder} already holds {what}; choose another folder (--out), or replace the run "
            "(--overwrite, in Python overwrite=True)"
        )


Held = Literal["nothing", "a run to start over", "an unfinished run", "a complete run"]


def holds(folder: Path, config: str) -> Held:
    """Return how much of the run whose config.yaml is `config` the folder holds.

    An unfinished run without a checkpoint can only start over.

    Raises:
        FileExistsError: If the folder holds a run with other settings.
    """
    if not files_of(folder):
        return "nothing"
    try:
        same = (folder / CONFIG).read_text() == config
    except (OSError, UnicodeDecodeError):
        same = False
    if not same:
        check_free(folder)
    if complete(folder):
        return "a complete run"
    return "an unfinished run" if checkpoints(folder / CHECKPOINTS) else "a run to start over"


@contextmanager
def opened(folder: Path, files: Mapping[str, str], overwrite: bool) -> Iterator[None]:
    """Create and lock the folder for the duration of a new run, and keep its status.json.

    Files of an earlier run are renamed to *.old. They are deleted when the new run is complete, and
    stay if it fails.

    Args:
        folder: The folder; it is created if it does not exist.
        files: Name -> content of files that are written at once.
        overwrite: Replace an earlier run.

    Raises:
        FileExistsError: If another run is writing to the folder, or the folder holds a run and
            `overwrite` is False.
        Unwritable: If the folder can't be created or written to.
    """
    with _locked(folder):
        try:
            if not overwrite:
                check_free(folder)
            _write_new(folder, files)
            _set_aside(folder)
            for name in files:
                (folder / f"{name}.new").replace(folder / name)
            with _followed(folder):
                yield
            for old in folder.glob(f"*{OLD}"):
                remove(old)
        finally:
            for name in files:
                (folder / f"{name}.new").unlink(missing_ok=True)


def _write_new(folder: Path, files: Mapping[str, str]) -> None:
    """Write all files beside their places, before old ones are touched."""
    try:
        for name, content in files.items():
            (folder / f"{name}.new").write_text(content)
    except OSError as error:
        raise Unwritable(
            f"the folder {folder} can't be written to: {error.strerror or error}; free space, or "
            "choose another folder (--out)"
        ) from None


@contextmanager
def reopened(folder: Path) -> Iterator[None]:
    """Lock the folder of an unfinished run while it goes on, and keep its status.json.

    Raises:
        FileExistsError: If another run is writing to the folder.
        Unwritable: If the folder can't be written to.
    """
    with _locked(folder):
        try:
            (folder / ERROR).unlink(missing_ok=True)
        except OSError as error:
            raise Unwritable(
                f"the folder {folder} can't be written to: {error.strerror or error}; make it "
                "writable"
            ) from None
        with _followed(folder):
            yield


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Create the folder and lock it."""
    lock = FileLock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise FileExistsError(
            f"another run is writing to {folder}; wait for it, or choose another folder (--out)"
        ) from None
    except OSError as error:
        what = "written to" if folder.is_dir() else "created"
        raise Unwritable(
            f"the folder {folder} can't be {what}: {error.strerror or error}; "
            "choose another folder (--out)"
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _followed(folder: Path) -> Iterator[None]:
    """Write what becomes of a run into status.json."""
    write_status(folder, "running")
    try:
        yield
    except KeyboardInterrupt:
        _try_status(folder, "stopped")
        raise
    except BaseException as error:
        _try_status(folder, "failed", " ".join(f"{type(error).__name__}: {error}".split()))
        raise
    write_status(folder, "finished")


def _try_status(folder: Path, status: State, error: str | None = None) -> None:
    """Write the status, unless the disk is full: the error at hand matters more."""
    with suppress(OSError):
        write_status(folder, status, error)


def _set_aside(folder: Path) -> None:
    """Rename the files of an earlier run; delete those of a failed attempt to replace it."""
    kept, found = list(folder.glob(f"*{OLD}")), files_of(folder)
    if kept and not complete(folder):
        for path in found:
            remove(path)
        return
    for path in kept:
        remove(path)
    for i, path in enumerate(found):
        is_events = path.match(EVENTS)
        os.replace(path, folder / (f"events-{i}{OLD}" if is_events else f"{path.name}{OLD}"))
