"""A cache of arrays on disk: built once, whole or not at all, and opened by memory map."""

from __future__ import annotations

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
SIZES = "sizes.json"  # of a finished folder: the size of every file in it
READ_WHOLE = 10**9  # bytes up to which contents count, above only sizes and times


def cache_folder() -> Path:
    """Where arrays are kept: `EVERLOOP_CACHE`, else `$XDG_CACHE_HOME/everloop`, else
    `~/.cache/everloop`.
    """
    if own := os.environ.get("EVERLOOP_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "everloop"


def fingerprint(*parts: str | Path) -> str:
    """Hex digest of `parts`, 32 characters (BLAKE2b, RFC 7693).

    A string counts as it is; a `Path` by its files' names relative to it and their contents, and,
    where they are larger than 1 GB together, by names, sizes and modification times. Raises
    ValueError for a path that isn't there.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        for piece in _pieces(part) if isinstance(part, Path) else (b"text", part.encode()):
            digest.update(len(piece).to_bytes(8) + piece)
    return digest.hexdigest()


def _pieces(path: Path) -> Iterator[bytes]:
    """What a file, or a folder with all it holds, counts by."""
    if not path.exists():
        raise ValueError(f"path is {str(path)!r}, allowed: a file or a folder that exists")
    walk = os.walk(path, followlinks=True)
    files = (
        [path]
        if path.is_file()
        else sorted(Path(folder, name) for folder, _, names in walk for name in names)
    )
    count = _contents if sum(file.stat().st_size for file in files) <= READ_WHOLE else _times
    yield b"path, %d files" % len(files)
    with ThreadPoolExecutor() as threads:  # hashing and reading leave the interpreter to others
        for file, counted in zip(files, threads.map(count, files), strict=True):
            yield os.fsencode(file.relative_to(path))
            yield counted


def _contents(file: Path) -> bytes:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "blake2b").digest()


def _times(file: Path) -> bytes:
    return b"%d %d" % (file.stat().st_size, file.stat().st_mtime_ns)


def cached(key: str, build: Callable[[], Mapping[str, Array]]) -> dict[str, Array]:
    """The arrays of `build()`, read-only and mapped from `cache_folder() / key`, where they are
    kept as .npy files.

    `build` is called only if they are not there. Raises ValueError for arrays of objects: strings
    are arrays of `str_`.
    """

    def write(folder: Path) -> None:
        for name, array in build().items():
            np.save(folder / file_name(name), array, allow_pickle=False)

    return cached_folder(key, write)


def cached_folder(key: str, write: Callable[[Path], None]) -> dict[str, Array]:
    """As `cached`, for arrays too large to hold in memory: `write(folder)` writes each to `folder /
    file_name(name)`.

    `write` fills a temporary folder of its own, which takes its place by one rename: of two
    processes the first one there wins, the other's folder is dropped, and a process that dies
    leaves nothing that looks finished.
    """
    place = cache_folder() / key
    if place.exists():
        try:
            return _opened(place)
        except (OSError, ValueError, EOFError) as error:
            warnings.warn(
                f"the cache {place} is damaged ({error}): building it again", stacklevel=3
            )
            _remove(place)
    _sweep()
    folder = _temporary(key)
    folder.mkdir(parents=True)
    try:
        write(folder)
        sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
        (folder / SIZES).write_text(json.dumps(sizes))
        try:
            folder.rename(place)
        except OSError:
            if not place.exists():  # otherwise another process was first
                raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return _opened(place)


def file_name(array: str) -> str:
    """The file that keeps the array of this name."""
    return quote(array, safe="") + ".npy"


def _opened(place: Path) -> dict[str, Array]:
    """All arrays of a finished folder.

    Raises OSError, ValueError or EOFError if one is missing or was cut.
    """
    sizes: dict[str, int] = json.loads((place / SIZES).read_text())
    arrays = {}
    for name, size in sizes.items():
        if (found := (place / name).stat().st_size) != size:
            raise ValueError(f"{name} has {found} bytes, not {size}")
        # plain arrays over the map: indexing a memmap object costs several times as much
        arrays[unquote(name.removesuffix(".npy"))] = np.asarray(
            np.load(place / name, mmap_mode="r", allow_pickle=False)
        )
    return arrays


def _temporary(key: str) -> Path:
    """A new path beside the finished folders, which says whose it is."""
    return cache_folder() / f"{key}.{uuid.uuid4().hex}.{os.getpid()}@{socket.gethostname()}"


def _remove(place: Path) -> None:
    """Move a folder away in one step before its files go, so that nobody finds half of it."""
    away = _temporary(place.name)
    try:
        place.rename(away)
    except FileNotFoundError:  # another process did
        return
    shutil.rmtree(away, ignore_errors=True)


def _sweep() -> None:
    """Delete what processes of this machine left behind when they were killed."""
    for folder in cache_folder().glob(f"*@{socket.gethostname()}"):
        if not _runs(int(folder.name.rpartition("@")[0].rpartition(".")[2])):
            shutil.rmtree(folder, ignore_errors=True)


def _runs(pid: int) -> bool:
    if os.name != "posix":  # where asking would end the process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True
