"""A cache of arrays on disk, built once, completely or not at all, and opened as memory maps."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import socket
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
SIZES = "sizes.json"  # lists the size of every file in a finished folder
READ_WHOLE = 10**9  # bytes; a larger source is identified by its files' sizes and times


def cache_folder() -> Path:
    """Return the folder of the cache.

    It is `EVERLOOP_CACHE`, else `$XDG_CACHE_HOME/everloop`, else `~/.cache/everloop`.
    """
    if own := os.environ.get("EVERLOOP_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "everloop"


def fingerprint(*parts: str | Path) -> str:
    """Return a hex digest of `parts`, 32 characters (BLAKE2b, RFC 7693).

    Args:
        *parts: Strings, and paths of files or folders. A path contributes its files' names
            relative to it and their contents. If they are larger than 1 GB together, it contributes
            names, sizes and modification times instead.

    Raises:
        ValueError: If a path does not exist.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        for piece in _pieces(part) if isinstance(part, Path) else (b"text", part.encode()):
            digest.update(len(piece).to_bytes(8) + piece)
    return digest.hexdigest()


def _pieces(path: Path) -> Iterator[bytes]:
    """Yield what a file or folder contributes to a fingerprint."""
    if not path.exists():
        raise ValueError(f"path {str(path)!r} does not exist; give an existing file or folder")
    walk = os.walk(path, followlinks=True)
    files = (
        [path]
        if path.is_file()
        else sorted(Path(folder, name) for folder, _, names in walk for name in names)
    )
    describe = _contents if sum(file.stat().st_size for file in files) <= READ_WHOLE else _times
    yield b"path, %d files" % len(files)
    with ThreadPoolExecutor() as threads:  # reading and hashing release the interpreter lock
        for file, description in zip(files, threads.map(describe, files), strict=True):
            yield os.fsencode(file.relative_to(path))
            yield description


def _contents(file: Path) -> bytes:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "blake2b").digest()


def _times(file: Path) -> bytes:
    return b"%d %d" % (file.stat().st_size, file.stat().st_mtime_ns)


def cached(key: str, build: Callable[[], Mapping[str, Array]]) -> dict[str, Array]:
    """Return the arrays of `build()`, read-only and memory-mapped from the cache.

    They are stored as .npy files in `cache_folder() / key`. `build` is called only if they are not
    there.

    Args:
        key: Name of the folder in the cache.
        build: Returns the arrays by name.

    Raises:
        ValueError: If there is an array of objects. Strings must be arrays of `str_`.
    """

    def write(folder: Path) -> None:
        for name, array in build().items():
            np.save(folder / file_name(name), array, allow_pickle=False)

    return cached_folder(key, write)


def cached_folder(key: str, write: Callable[[Path], None]) -> dict[str, Array]:
    """Like `cached`, for arrays that are too large to hold in memory.

    `write` fills a temporary folder, which is then renamed in one step. If two processes build
    the same key, the first to finish wins and the folder of the other is deleted. A process that
    dies leaves nothing that looks finished.

    Args:
        key: Name of the folder in the cache.
        write: `write(folder)` writes each array to `folder / file_name(name)`.

    Raises:
        OSError: If the cache can't be written to. The message is one line that names it.
    """
    place = cache_folder() / key
    if place.exists():
        try:
            return _opened(place)
        except (OSError, ValueError, EOFError) as error:
            warnings.warn(f"the cache {place} is damaged ({error}); rebuilding it", stacklevel=3)
            _remove(place)
    _sweep()
    folder = _temporary(key)
    try:
        folder.mkdir(parents=True)
        write(folder)
        sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
        (folder / SIZES).write_text(json.dumps(sizes))
        try:
            folder.rename(place)
        except OSError:
            if not place.exists():  # a real error; otherwise another process finished first
                raise
    except OSError as error:
        if (why := _unwritable(folder, error)) is None:
            raise
        raise OSError(
            f"the cache {cache_folder()} can't be written: {why}; free space, or name another "
            "folder in EVERLOOP_CACHE"
        ) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return _opened(place)


def _unwritable(folder: Path, error: OSError) -> str | None:
    """Return why nothing can be written below `folder`; None if the error has another cause.

    Numpy's errors on a full disk have neither a number nor a file name.
    """
    named = error.filename is not None and Path(os.fsdecode(error.filename)).is_relative_to(
        cache_folder()
    )
    full = error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
    if not named and not full and "requested and" not in str(error):
        return None
    return error.strerror or str(error)


def file_name(array: str) -> str:
    """Return the name of the file that stores the array of this name."""
    return quote(array, safe="") + ".npy"


def _opened(place: Path) -> dict[str, Array]:
    """Open all arrays of a finished folder.

    Raises:
        OSError: If a file is missing.
        ValueError: If a file is damaged or has the wrong size.
        EOFError: If a file is empty.
    """
    sizes: dict[str, int] = json.loads((place / SIZES).read_text())
    arrays = {}
    for name, size in sizes.items():
        if (found := (place / name).stat().st_size) != size:
            raise ValueError(f"{name} has {found} bytes instead of {size}")
        # plain arrays on top of the map: indexing a memmap object costs several times as much
        arrays[unquote(name.removesuffix(".npy"))] = np.asarray(
            np.load(place / name, mmap_mode="r", allow_pickle=False)
        )
    return arrays


def _temporary(key: str) -> Path:
    """Return a new path beside the finished folders; its name holds the process and the host."""
    return cache_folder() / f"{key}.{uuid.uuid4().hex}.{os.getpid()}@{socket.gethostname()}"


def _remove(place: Path) -> None:
    """Delete a folder, renaming it first so that no process finds half of it."""
    away = _temporary(place.name)
    try:
        place.rename(away)
    except FileNotFoundError:  # another process removed it
        return
    shutil.rmtree(away, ignore_errors=True)


def _sweep() -> None:
    """Delete temporary folders of processes on this machine that are no longer running."""
    for folder in cache_folder().glob(f"*@{socket.gethostname()}"):
        if not _runs(int(folder.name.rpartition("@")[0].rpartition(".")[2])):
            shutil.rmtree(folder, ignore_errors=True)


def _runs(pid: int) -> bool:
    if os.name != "posix":  # os.kill would end the process there
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it runs, and belongs to another user
        return True
    return True
