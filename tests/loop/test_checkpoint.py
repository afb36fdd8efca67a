"""A checkpoint gives back the state that was saved, whatever happens to the disk meanwhile."""

from __future__ import annotations

import json
import math
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from everloop.loop import disk
from everloop.loop.checkpoint import (
    Checkpoint,
    CheckpointError,
    checkpoints,
    next_name,
)

STATE: dict[str, Any] = {
    "float32": torch.tensor([0.1, -0.0, math.inf, math.nan]),
    "bfloat16": torch.tensor([1.5, 3.0], dtype=torch.bfloat16),
    "scalar tensor": torch.tensor(3),
    "empty": torch.zeros(0, 4),
    "turned": torch.arange(6.0).reshape(2, 3).T,
    "array": np.arange(6, dtype=np.uint16).reshape(2, 3),
    "raw": np.array([1, 2], dtype=np.int16).view("V2"),
    "words": np.array(["a", "bcd"]),
    "bools": np.array([True, False]),
    "none": np.zeros((0, 3)),
    "zero-dimensional": np.array(2.5),
    "number of numpy": np.float32(0.1),
    "big": 2**127 + 1,
    "float": 0.1,
    "nan": math.nan,
    "-inf": -math.inf,
    "pair": (0.9, 0.999),
    "nested": [{"a": None, "b": [True, "text", []]}, {}],
    "keys": {7: 1, (1, 2): 2, None: 3, "$tensor": 4},
}


def same(a: Any, b: Any) -> bool:
    """Whether two states are equal in type and to the bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        raw = [x.contiguous().reshape(-1).view(torch.uint8).tolist() for x in (a, b)]
        return a.dtype == b.dtype and a.shape == b.shape and raw[0] == raw[1]
    if isinstance(a, np.ndarray | np.generic):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return a == b or (math.isnan(a) and math.isnan(b))
    return bool(a == b)


def saved(folder: Path, state: dict[str, Any] = STATE, step: int = 5) -> Path:
    Checkpoint(folder, step, None, {"seed": 3}).write(state)
    return folder


def test_every_kind_of_value_comes_back_in_type_and_to_the_bit(tmp_path: Path) -> None:
    found = Checkpoint.open(saved(tmp_path / "a"))
    assert (found.step, found.inexact, found.about) == (5, None, {"seed": 3})
    assert same(found.state(), STATE)
    assert same(found.state("nested"), STATE["nested"])


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers(), inner)
    ),
)


@given(plain)
def test_any_plain_value_comes_back(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    folder = tmp_path_factory.mktemp("state") / "a"
    assert same(Checkpoint.open(saved(folder, {"value": value})).state("value"), value)


def test_tensors_that_share_memory_are_saved_each(tmp_path: Path) -> None:
    x = torch.arange(4.0)
    state = {"x": x, "same": x, "part": x[1:3]}
    assert same(Checkpoint.open(saved(tmp_path / "a", state)).state(), state)


@pytest.mark.parametrize(
    ("value", "kind"),
    [(object(), "object"), (lambda: 0, "function"), ({1}, "set"), (b"x", "bytes")],
)
def test_what_a_checkpoint_cannot_hold_is_named_with_its_place(
    tmp_path: Path, value: Any, kind: str
) -> None:
    with pytest.raises(ValueError, match=f"the state/mine/0 is a {kind}"):
        saved(tmp_path / "a", {"mine": [value]})
    with pytest.raises(ValueError, match="the state/mine is an array of objects"):
        saved(tmp_path / "b", {"mine": np.array([object()])})


WRITES = ("make_folder", "create", "create_tensors", "sync_folder", "rename", "remove")
"""Every function that changes the disk."""


class Faults:
    """Lets a number of calls that change the disk pass, and then fails or dies.

    The call that fails may have been done by half: a file is then written with half its content.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, calls: int, die: bool, half: bool) -> None:
        self.left, self.die, self.half, self.failed = calls, die, half, False
        for name in WRITES:
            monkeypatch.setattr(disk, name, self._faulty(name, getattr(disk, name)))

    def _faulty(self, name: str, work: Callable[..., None]) -> Callable[..., None]:
        def call(path: Path, *args: Any) -> None:
            self.left -= 1
            if self.left >= 0 or (self.failed and not self.die):
                work(path, *args)
                return
            if self.half and name in ("create", "create_tensors") and not self.failed:
                work(path, *args)
                os.truncate(path, path.stat().st_size // 2)
            self.failed = True
            raise KeyboardInterrupt if self.die else OSError(28, "No space left on device")

        return call


@pytest.mark.parametrize("die", [False, True], ids=["error", "crash"])
@pytest.mark.parametrize("half", [False, True], ids=["not done", "half done"])
@pytest.mark.parametrize("place", ["beside", "over"])
def test_a_fault_at_any_write_leaves_a_complete_checkpoint(
    tmp_path: Path, place: str, half: bool, die: bool
) -> None:
    """A crash also fails all that would clean up after it."""
    faults = 0
    for calls in range(100):
        folder = tmp_path / str(calls)
        old = saved(folder / "step-1", {"x": torch.tensor(1)}, 1)
        new = folder / ("step-2" if place == "beside" else "step-1")
        with pytest.MonkeyPatch.context() as patch:
            fault = Faults(patch, calls, die, half)
            try:
                saved(new, {"x": torch.tensor(2)}, 2)
            except OSError as error:
                assert "No space left on device" in str(error)  # noqa: PT017
            except KeyboardInterrupt:
                pass
        last = checkpoints(folder)[-1] if checkpoints(folder) else old
        found = Checkpoint.open(last)
        assert found.state("x") == found.step
        if not fault.failed:
            assert found.step == 2
            break
        faults += 1
        if not die:
            assert found.step == 1 or place == "over" or new.exists()
            assert not list(folder.glob(".*new"))
    assert faults >= 9


def test_a_save_after_a_crash_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        Faults(patch, 3, die=True, half=True)
        with pytest.raises(KeyboardInterrupt):
            saved(tmp_path / "step-1")
    saved(tmp_path / "step-1")
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]


def damaged(folder: Path, name: str, change: Callable[[bytes], bytes]) -> Path:
    (folder / name).write_bytes(change((folder / name).read_bytes()))
    return folder


def manifest(**changes: Any) -> Callable[[bytes], bytes]:
    return lambda content: json.dumps({**json.loads(content), **changes}).encode()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("tensors.safetensors", lambda x: x[:-1], "tensors.safetensors has another checksum"),
        ("tensors.safetensors", lambda x: x[:-1] + b"!", "tensors.safetensors has another"),
        ("state.json", lambda x: x[: len(x) // 2], "state.json has another checksum"),
        ("state.json", lambda x: pickle.dumps(1), "state.json has another checksum"),
        ("manifest.json", lambda x: x[: len(x) // 2], "is damaged: manifest.json"),
        ("manifest.json", lambda x: pickle.dumps(1), "is damaged: manifest.json"),
        ("manifest.json", lambda x: b"[]", "is no checkpoint of everloop"),
        ("manifest.json", manifest(kind="another"), "is no checkpoint of everloop"),
        ("manifest.json", manifest(format=2), "format 2; this everloop reads format 1"),
        ("manifest.json", manifest(sha256={}), "its manifest lacks 'state.json'"),
        ("manifest.json", manifest(sha256=3), "is damaged"),
        ("manifest.json", manifest(step="many"), "is damaged"),
    ],
)
def test_a_damaged_foreign_or_newer_checkpoint_is_refused_in_one_line(
    tmp_path: Path, name: str, change: Callable[[bytes], bytes], message: str
) -> None:
    folder = damaged(saved(tmp_path / "step-5"), name, change)
    with pytest.raises(CheckpointError) as error:
        Checkpoint.open(folder)
    assert message in str(error.value)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["state.json", "tensors.safetensors", "manifest.json"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    folder = saved(tmp_path / "step-5")
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        Checkpoint.open(folder)
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        Checkpoint.open(tmp_path / "nothing")


class Planted:
    """Unpickling it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_a_stranger_s_checkpoint_runs_no_code_and_reads_no_other_file(tmp_path: Path) -> None:
    """Its checksums are right, so only the reading itself protects."""
    mark, secret = tmp_path / "executed", tmp_path / "secret"
    secret.write_text("key")
    for name in ("state.json", "tensors.safetensors"):
        folder = saved(tmp_path / "pickled" / name)
        (folder / name).write_bytes(pickle.dumps(Planted(mark)))
        _sign(folder)
        with pytest.raises(CheckpointError, match="is damaged"):
            Checkpoint.open(folder).state()
        link = saved(tmp_path / "linked" / name)
        (link / name).unlink()
        (link / name).symlink_to(secret)
        _sign(link)
        with pytest.raises(CheckpointError, match="another checksum"):
            Checkpoint.open(link)
    names = saved(tmp_path / "named")
    damaged(names, "manifest.json", manifest(sha256={"../secret": "0"}))
    with pytest.raises(CheckpointError, match="is damaged"):
        Checkpoint.open(names)
    assert not mark.exists()


def _sign(folder: Path) -> None:
    """Give the manifest the right checksums."""
    import hashlib

    sums = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in ("state.json", "tensors.safetensors")
    }
    damaged(folder, "manifest.json", manifest(sha256=sums))


@pytest.mark.parametrize(
    "node",
    [
        {"$tensor": "missing"},
        {"$array": "/x", "dtype": "O", "shape": [1]},
        {"$array": "/x", "dtype": "float64", "shape": [99]},
        {"$unknown": 1},
        {"$dict": [[[1], 2]]},
    ],
)
def test_a_state_that_nobody_has_saved_is_refused(tmp_path: Path, node: Any) -> None:
    folder = saved(tmp_path / "a", {"x": np.zeros(1)})
    (folder / "state.json").write_text(json.dumps(node))
    _sign(folder)
    with pytest.raises(CheckpointError, match="is damaged"):
        Checkpoint.open(folder).state()


def test_checkpoints_are_listed_by_step_and_names_never_repeat(tmp_path: Path) -> None:
    assert checkpoints(tmp_path / "nothing") == []
    for name in ("step-9", "step-10", "step-10-2", "step-100", "step-x", ".step-3.old"):
        (tmp_path / name).mkdir()
    names = [path.name for path in checkpoints(tmp_path)]
    assert names == ["step-9", "step-10", "step-10-2", "step-100"]
    assert next_name(tmp_path, 10).name == "step-10-3"
    assert next_name(tmp_path, 11).name == "step-11"
