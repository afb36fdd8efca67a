"""Writing files so that a crash at any moment leaves the old content or the new one.

Every change of a file that a run depends on goes through one of these functions.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor


def create(path: Path, text: str) -> None:
    """Write a new file and wait until the disk holds it.

    Raises:
        OSError: If the file exists or can't be written.
    """
    with path.open("x", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def create_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors by name as a safetensors file, and wait until the disk holds it.

    Args:
        path: The new file.
        tensors: Contiguous tensors on the CPU that share no memory.

    Raises:
        OSError: If the file can't be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), path)
    except SafetensorError as error:
        raise OSError(str(error)) from None
    path.chmod(path.parent.stat().st_mode & 0o666)  # safetensors lets only the owner read it
    with path.open("rb") as file:
        os.fsync(file.fileno())


def make_folder(path: Path) -> None:
    """Create a folder and its parents. It may exist."""
    path.mkdir(parents=True, exist_ok=True)


def sync_folder(path: Path) -> None:
    """Wait until the disk holds which files are in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename(old: Path, new: Path) -> None:
    """Rename a file, replacing the new one, or a folder, whose new name must be free."""
    os.replace(old, new)


def remove(path: Path) -> None:
    """Remove a file or a folder with all that it holds, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as a whole, or not at all.

    Args:
        path: The file. A `.tmp` file beside it is used and removed.
        text: The new content.

    Raises:
        OSError: If the file can't be written. The message is one line that names it.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        remove(temporary)
        create(temporary, text)
        rename(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            remove(temporary)
        raise OSError(
            f"{path} can't be written: {error.strerror or error}; free space, or make the folder "
            "writable"
        ) from None


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` as JSON to `path` as a whole, or not at all.

    Raises:
        OSError: If the file can't be written.
        ValueError: If a number is not finite.
    """
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")
