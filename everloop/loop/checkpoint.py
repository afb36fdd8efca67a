"""Checkpoints: the state of a run in a folder, written as a whole or not at all.

A checkpoint is a folder of three files: the tensors and arrays of the state in safetensors, the
rest of it as JSON, and a manifest with the format version, the position and the checksums of the
other two. Reading one executes nothing that it contains.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from everloop.loop import disk

FORMAT = 1
KIND = "everloop checkpoint"
STATE, TENSORS, MANIFEST = "state.json", "tensors.safetensors", "manifest.json"
NAME = re.compile(r"step-(\d+)(?:-(\d+))?")
"""Name of a checkpoint in the folder of a run: its step, and a number if that step has several."""


class CheckpointError(ValueError):
    """A checkpoint that can't be read. The message is one line that says why."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on the disk. `open` checks it, and `state` reads it.

    Args:
        folder: Its folder.
        step: World steps learned from when it was saved.
        inexact: Why a run that continues from it differs from one that was never stopped; None if
            it does not.
        about: What else was saved to describe it.
    """

    folder: Path
    step: int
    inexact: str | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    def write(self, state: Mapping[str, Any]) -> None:
        """Save `state` in the folder. An earlier checkpoint there is replaced.

        Args:
            state: Tensors, arrays and plain Python, in nested mappings and lists.

        Raises:
            OSError: If a file can't be written; the folder is as before. The message is one line.
            ValueError: If the state holds something else.
        """
        temporary = self.folder.with_name(f".{self.folder.name}.{os.getpid()}.new")
        try:
            disk.make_folder(self.folder.parent)
            disk.remove(temporary)
            disk.make_folder(temporary)
            self._fill(temporary, state)
            self._put(temporary)
        except OSError as error:
            disk.remove(temporary)
            raise OSError(
                f"the checkpoint {self.folder} can't be written: {error.strerror or error}; free "
                "space, or make the folder writable"
            ) from None

    def _fill(self, folder: Path, state: Mapping[str, Any]) -> None:
        """Write the files, the manifest last."""
        tensors: dict[str, Tensor] = {}
        tree = _Encoder(tensors).encode(state, "")
        disk.create_tensors(folder / TENSORS, tensors)
        disk.create(folder / STATE, json.dumps(tree, allow_nan=False))
        manifest = {
            "kind": KIND,
            "format": FORMAT,
            "step": self.step,
            "exact": self.inexact is None,
            **({} if self.inexact is None else {"because": self.inexact}),
            "sha256": {name: _checksum(folder / name) for name in (STATE, TENSORS)},
            "about": self.about,
        }
        disk.create(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")
        disk.sync_folder(folder)

    def _put(self, temporary: Path) -> None:
        """Move the complete new folder to its place."""
        earlier = _set_aside(self.folder)
        disk.remove(earlier)
        if self.folder.exists():
            disk.rename(self.folder, earlier)
        disk.rename(temporary, self.folder)
        disk.sync_folder(self.folder.parent)
        disk.remove(earlier)

    @classmethod
    def open(cls, folder: Path | str) -> Self:
        """Return the checkpoint in `folder`, after checking the version and the checksums.

        Raises:
            CheckpointError: If there is none, it is damaged, or another version has written it.
        """
        place = Path(folder)
        if not place.exists() and _set_aside(place).exists():
            place = _set_aside(place)  # a crash happened between the two renames of `_put`
        manifest = _manifest(place)
        if manifest.get("format") != FORMAT:
            raise CheckpointError(
                f"{folder} has checkpoint format {manifest.get('format')}; this everloop reads "
                f"format {FORMAT}, so use the version that wrote it"
            )
        try:
            sums = manifest["sha256"]
            for name in (STATE, TENSORS):
                if (place / name).is_symlink() or _checksum(place / name) != sums[name]:
                    raise CheckpointError(f"{folder} is damaged: {name} has another checksum")
            inexact = None if manifest["exact"] else str(manifest["because"])
            return cls(place, int(manifest["step"]), inexact, dict(manifest["about"]))
        except OSError as error:
            raise CheckpointError(f"{folder} is incomplete: {error}") from None
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{folder} is damaged: its manifest lacks {error}") from None

    def state(self, *path: str) -> Any:
        """Return the saved state, or only the part of it at `path`.

        Args:
            path: Keys that lead to the part, such as "learner", "learned".

        Raises:
            CheckpointError: If it can't be read.
        """
        from safetensors import SafetensorError, safe_open

        try:
            tree = json.loads((self.folder / STATE).read_text(encoding="utf-8"))
            for key in path:
                tree = tree[key]
            with safe_open(self.folder / TENSORS, framework="pt") as tensors:
                return _decode(tree, tensors.get_tensor)
        except (OSError, SafetensorError, LookupError, TypeError, ValueError, RecursionError) as e:
            raise CheckpointError(
                f"{self.folder} is damaged: {type(e).__name__}: {' '.join(str(e).split())}"
            ) from None


def _set_aside(folder: Path) -> Path:
    """Return where an earlier checkpoint lies while it is replaced."""
    return folder.with_name(f".{folder.name}.old")


def _manifest(folder: Path) -> Mapping[str, Any]:
    """Return the content of the manifest."""
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is no checkpoint: it has no {MANIFEST}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder} is damaged: {MANIFEST}: {error}") from None
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise CheckpointError(f"{folder} is no checkpoint of everloop")
    return content


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checkpoints(folder: Path) -> list[Path]:
    """Return the folders of the checkpoints in `folder`, the oldest first."""
    found = [path for path in folder.glob("step-*") if NAME.fullmatch(path.name)]
    return sorted(found, key=_place)


def step_of(path: Path) -> int:
    """Return the step in the name of a checkpoint in the folder of a run."""
    return _place(path)[0]


def _place(path: Path) -> tuple[int, int]:
    match = NAME.fullmatch(path.name)
    assert match is not None, "the name of a checkpoint"
    return int(match[1]), int(match[2] or 1)


def next_name(folder: Path, step: int) -> Path:
    """Return a free name for a checkpoint at `step` in `folder`, after all others of that step."""
    numbers = [_place(path)[1] for path in checkpoints(folder) if step_of(path) == step]
    return folder / (f"step-{step}-{max(numbers) + 1}" if numbers else f"step-{step}")


def is_exact(folder: Path) -> bool:
    """Return whether a run that continues from a checkpoint is as if it had not been stopped."""
    try:
        return bool(_manifest(folder).get("exact"))
    except CheckpointError:
        return False


class _Encoder:
    """Turns a state into JSON, and moves its tensors and arrays to `tensors`.

    What JSON can't express is an object with one key, which begins with "$":

        $tensor   name of a tensor
        $array    name and dtype of an array; $scalar of a numpy number
        $tuple    list of the elements
        $dict     list of pairs, for keys that are no strings or begin with "$"
        $float    nan, inf or -inf
    """

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors
        self._known: set[int] = set()  # addresses of the tensors' memory

    def encode(self, value: Any, path: str) -> Any:
        """Return `value` as JSON can hold it; `path` says where it is."""
        if isinstance(value, Tensor):
            return {"$tensor": self._add(value, path)}
        if isinstance(value, np.ndarray | np.generic):
            return self._array(value, path)
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, float):
            return value if np.isfinite(value) else {"$float": str(value)}
        if isinstance(value, Mapping):
            return self._mapping(value, path)
        if isinstance(value, list | tuple):
            parts = [self.encode(part, f"{path}/{i}") for i, part in enumerate(value)]
            return parts if isinstance(value, list) else {"$tuple": parts}
        raise ValueError(
            f"the state{path} is a {type(value).__name__}, which a checkpoint can't hold; use "
            "tensors, arrays and plain Python"
        )

    def _mapping(self, value: Mapping[Any, Any], path: str) -> Any:
        parts = {key: self.encode(part, f"{path}/{key}") for key, part in value.items()}
        if all(isinstance(key, str) and not key.startswith("$") for key in parts):
            return parts
        return {"$dict": [[self.encode(key, path), part] for key, part in parts.items()]}

    def _array(self, value: Any, path: str) -> Any:
        array = np.ascontiguousarray(value).reshape(np.shape(value))
        if array.dtype.hasobject:
            raise ValueError(f"the state{path} is an array of objects; use one of numbers")
        kind = "$array" if isinstance(value, np.ndarray) else "$scalar"
        flat = array.reshape(-1).view(np.uint8)  # torch lacks some of numpy's dtypes
        entry = {"dtype": array.dtype.str, "shape": list(array.shape)}
        return {kind: self._add(torch.from_numpy(flat), path), **entry}

    def _add(self, tensor: Tensor, path: str) -> str:
        """Add a tensor and return its name, which is unique."""
        tensor = tensor.detach().cpu().contiguous()
        address = tensor.untyped_storage().data_ptr()
        if address in self._known:  # safetensors refuses tensors that share memory
            tensor = tensor.clone()
        self._known.add(tensor.untyped_storage().data_ptr())
        name, number = path, 1
        while name in self.tensors:
            number += 1
            name = f"{path}#{number}"
        self.tensors[name] = tensor
        return name


def _decode(node: Any, tensor: Callable[[str], Tensor]) -> Any:
    """Return the value from which `_Encoder` made `node`."""
    if isinstance(node, list):
        return [_decode(part, tensor) for part in node]
    if not isinstance(node, dict):
        return node
    kind = next((key for key in node if key.startswith("$")), None)
    if kind is None:
        return {key: _decode(part, tensor) for key, part in node.items()}
    content = node[kind]
    if kind == "$tensor":
        return tensor(content)
    if kind in ("$array", "$scalar"):
        array = _array_of(tensor(content), node)
        return array if kind == "$array" else array[()]
    if kind == "$tuple":
        return tuple(_decode(part, tensor) for part in content)
    if kind == "$dict":
        return {_decode(key, tensor): _decode(part, tensor) for key, part in content}
    if kind == "$float":
        return float(content)
    raise ValueError(f"unknown kind {kind}")


def _array_of(raw: Tensor, node: Mapping[str, Any]) -> Any:
    """Return the array whose bytes are `raw`."""
    dtype = np.dtype(str(node["dtype"]))
    if dtype.hasobject:
        raise ValueError("an array of objects")
    return raw.numpy().view(dtype).reshape(node["shape"]).copy()
