"""The cache returns complete arrays, also after a failed, killed or concurrent build."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_sets import mapped
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from everloop.envs.data import cache
from everloop.envs.data.cache import cache_folder, cached, cached_folder, fingerprint


def fail() -> Any:
    raise AssertionError("built again")


def test_the_folder_is_everloop_cache_then_xdg_then_home(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", "/h")
    for everloop, xdg, expected in (
        ("/a", "/b", "/a"),
        (None, "/b", "/b/everloop"),
        ("", "", "/h/.cache/everloop"),
    ):
        for name, value in (("EVERLOOP_CACHE", everloop), ("XDG_CACHE_HOME", xdg)):
            monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value)
        assert cache_folder() == Path(expected)


texts = st.lists(st.text(max_size=3), max_size=4)


@given(one=texts, other=texts)
@settings(deadline=None)
def test_strings_have_the_same_fingerprint_only_if_they_are_equal(
    one: list[str], other: list[str]
) -> None:
    """Strings that differ only in where one ends and the next begins are not equal."""
    assert (fingerprint(*one) == fingerprint(*other)) == (one == other)


def files(root: Path, contents: dict[str, str]) -> Path:
    for name, text in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


names = st.sampled_from(["a", "b", "c/a", "c/b", "d/e/f"])
trees = st.dictionaries(names, st.text("xy", max_size=3))


@given(one=trees, other=trees)
@settings(deadline=None, max_examples=60)
def test_folders_have_the_same_fingerprint_only_if_names_and_contents_match(
    tmp_path_factory: pytest.TempPathFactory, one: dict[str, str], other: dict[str, str]
) -> None:
    """The folders' own paths and the order in which files were written do not matter."""
    first, second = (
        files(tmp_path_factory.mktemp("tree"), tree)
        for tree in (one, dict(reversed(other.items())))
    )
    assert (fingerprint(first) == fingerprint(second)) == (one == other)


def test_a_file_is_fingerprinted_by_its_contents_and_a_string_by_itself(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("one")
    (tmp_path / "b").write_text("one")
    assert (
        fingerprint(tmp_path / "a")
        == fingerprint(tmp_path / "b")
        != fingerprint(str(tmp_path / "a"))
    )
    (tmp_path / "b").write_text("two")
    assert fingerprint(tmp_path / "a") != fingerprint(tmp_path / "b")
    with pytest.raises(
        ValueError, match=r"^path '.*c' does not exist; give an existing file or folder$"
    ):
        fingerprint(tmp_path / "c")


def test_a_large_folder_is_fingerprinted_by_names_sizes_and_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "READ_WHOLE", 5)
    root, file = files(tmp_path / "large", {"a": "xxx", "b": "xxx"}), tmp_path / "large" / "a"
    prints = {fingerprint(root)}
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    file.write_text("yyy")
    os.utime(file, ns=times)
    assert fingerprint(root) in prints, "contents are not read"
    os.utime(file, ns=(times[0], times[1] + 1))
    prints.add(fingerprint(root))
    file.write_text("yyyy")
    os.utime(file, ns=times)
    prints.add(fingerprint(root))
    file.rename(root / "c")
    prints.add(fingerprint(root))
    assert len(prints) == 4


kinds = st.sampled_from([np.uint8, np.int64, np.float32, np.bool_, "<U3"])
some_arrays = arrays_of.arrays(
    kinds, arrays_of.array_shapes(min_dims=0, max_dims=3, min_side=0), elements=None
)


@given(
    built=st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=4), some_arrays, max_size=3
    )
)
@settings(deadline=None, max_examples=60)
def test_built_arrays_are_returned_from_the_cache_bit_for_bit(
    built: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """With any names. The arrays are mapped and read-only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVERLOOP_CACHE", str(tmp_path_factory.mktemp("cache")))
        for found in (cached("key", lambda: built), cached("key", fail)):
            assert found.keys() == built.keys()
            for name, array in found.items():
                assert array.dtype == built[name].dtype
                assert array.shape == built[name].shape
                assert array.tobytes() == built[name].tobytes()
                assert mapped(array)
                assert not array.flags.writeable


def test_each_key_has_its_own_arrays() -> None:
    assert [
        int(cached(str(key), lambda key=key: {"x": np.array(key)})["x"]) for key in (1, 2, 1)
    ] == [1, 2, 1]


@pytest.mark.parametrize("kept", [np.array(["a", None]), np.array([{}])])
def test_object_arrays_are_refused_and_leave_no_files(kept: Any, cache: Path) -> None:
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        cached("key", lambda: {"good": np.arange(3), "bad": kept})
    assert list(cache.iterdir()) == []


def test_a_failed_build_leaves_no_files(cache: Path) -> None:
    def write(place: Path) -> None:
        np.save(place / "half.npy", np.arange(3))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_folder("key", write)
    assert list(cache.iterdir()) == []
    assert cached("key", lambda: {"x": np.arange(2)})["x"].tolist() == [0, 1]


def truncated_array(place: Path) -> None:
    with open(place / "x.npy", "r+b") as file:
        file.truncate(file.seek(0, 2) - 1)


def empty_array(place: Path) -> None:
    (place / "x.npy").write_bytes(b"")


def zeroed_array(place: Path) -> None:
    (place / "x.npy").write_bytes(b"\0" * (place / "x.npy").stat().st_size)


def missing_array(place: Path) -> None:
    (place / "x.npy").unlink()


def missing_sizes(place: Path) -> None:
    (place / "sizes.json").unlink()


def truncated_sizes(place: Path) -> None:
    (place / "sizes.json").write_text('{"x.npy"')


@pytest.mark.parametrize(
    "damage",
    [truncated_array, empty_array, zeroed_array, missing_array, missing_sizes, truncated_sizes],
)
def test_a_damaged_entry_is_built_again_with_one_warning(damage: Any, cache: Path) -> None:
    cached("key", lambda: {"x": np.arange(100)})
    damage(cache / "key")
    with pytest.warns(
        UserWarning, match=r"^the cache .*key is damaged \(.*\); rebuilding it$"
    ) as warnings:
        found = cached("key", lambda: {"x": np.arange(100)})
    assert len(warnings) == 1
    assert found["x"].tolist() == list(range(100))
    assert cached("key", fail)["x"].tolist() == list(range(100))
    assert [path.name for path in cache.iterdir()] == ["key"]


BUILDER = """
import sys
from pathlib import Path
import numpy as np
from everloop.envs.data.cache import cached_folder

def write(folder):
    np.save(folder / "x.npy", np.arange(1000))
    print("half", flush=True)
    sys.stdin.readline()
    np.save(folder / "y.npy", np.arange(1000) ** 2)

arrays = cached_folder("key", write)
print(int(arrays["x"].sum()), int(arrays["y"].sum()), flush=True)
"""


class Builder:
    """A process that waits halfway through its build until `proceed` is called."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", BUILDER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def proceed(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()


@pytest.fixture
def builders() -> Iterator[list[Builder]]:
    started = [Builder(), Builder()]
    yield started
    for builder in started:
        builder.process.kill()
        builder.process.communicate()


RESULT = f"{sum(range(1000))} {sum(i * i for i in range(1000))}"


def test_two_processes_that_build_at_once_get_the_same_arrays(
    builders: list[Builder], cache: Path
) -> None:
    assert [builder.line() for builder in builders] == ["half", "half"]
    assert not (cache / "key").exists(), "a half-built entry must not be visible"
    for builder in builders:
        builder.proceed()
        assert builder.line() == RESULT
        assert builder.process.wait() == 0
    assert [path.name for path in cache.iterdir()] == ["key"], (
        "the second process must delete its build"
    )


def test_the_half_built_entry_of_a_killed_process_is_deleted(
    builders: list[Builder], cache: Path
) -> None:
    assert [builder.line() for builder in builders] == ["half", "half"]
    killed, running = builders
    killed.process.send_signal(signal.SIGKILL)
    killed.process.wait()
    assert len(list(cache.iterdir())) == 2
    assert not (cache / "key").exists()
    assert (
        cached("key", lambda: {"x": np.arange(1000), "y": np.arange(1000) ** 2})["y"][-1] == 999**2
    )
    left = [path.name for path in cache.iterdir() if path.name != "key"]
    assert len(left) == 1, "only the killed process's folder is deleted"
    assert f".{running.process.pid}@" in left[0]
    running.proceed()
    assert running.line() == RESULT
    assert running.process.wait() == 0
    assert [path.name for path in cache.iterdir()] == ["key"]
