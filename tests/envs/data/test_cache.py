"""The cache gives what was built, once, whole, or not at all: whoever builds at the same time,
dies, or damages it.
"""

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


def never() -> Any:
    raise AssertionError("built again")


def test_the_folder_is_ones_own_or_that_of_the_desktop_or_of_the_home(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", "/h")
    for own, desktop, expected in (
        ("/a", "/b", "/a"),
        (None, "/b", "/b/everloop"),
        ("", "", "/h/.cache/everloop"),
    ):
        for name, value in (("EVERLOOP_CACHE", own), ("XDG_CACHE_HOME", desktop)):
            monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value)
        assert cache_folder() == Path(expected)


texts = st.lists(st.text(max_size=3), max_size=4)


@given(one=texts, other=texts)
@settings(deadline=None)
def test_two_lists_of_strings_count_as_one_only_if_they_are(
    one: list[str], other: list[str]
) -> None:
    """Wherever one string ends and the next begins."""
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
def test_two_folders_count_as_one_only_if_their_names_and_contents_do(
    tmp_path_factory: pytest.TempPathFactory, one: dict[str, str], other: dict[str, str]
) -> None:
    """Wherever they lie, and in whatever order their files were made."""
    first, second = (
        files(tmp_path_factory.mktemp("tree"), tree)
        for tree in (one, dict(reversed(other.items())))
    )
    assert (fingerprint(first) == fingerprint(second)) == (one == other)


def test_a_path_counts_by_its_contents_and_its_name_as_a_string_does_not(tmp_path: Path) -> None:
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


def test_a_large_folder_counts_by_names_sizes_and_times(
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
def test_what_is_built_once_is_found_again(
    built: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """To the bit, whatever the arrays are called; mapped, and safe from being written to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVERLOOP_CACHE", str(tmp_path_factory.mktemp("cache")))
        for found in (cached("key", lambda: built), cached("key", never)):
            assert found.keys() == built.keys()
            for name, array in found.items():
                assert array.dtype == built[name].dtype
                assert array.shape == built[name].shape
                assert array.tobytes() == built[name].tobytes()
                assert mapped(array)
                assert not array.flags.writeable


def test_keys_do_not_mix() -> None:
    assert [
        int(cached(str(key), lambda key=key: {"x": np.array(key)})["x"]) for key in (1, 2, 1)
    ] == [1, 2, 1]


@pytest.mark.parametrize("kept", [np.array(["a", None]), np.array([{}])])
def test_objects_are_refused_and_leave_nothing(kept: Any, cache: Path) -> None:
    with pytest.raises(ValueError, match=r"Object arrays cannot be saved"):
        cached("key", lambda: {"good": np.arange(3), "bad": kept})
    assert list(cache.iterdir()) == []


def test_a_build_that_fails_leaves_nothing(cache: Path) -> None:
    def write(place: Path) -> None:
        np.save(place / "half.npy", np.arange(3))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_folder("key", write)
    assert list(cache.iterdir()) == []
    assert cached("key", lambda: {"x": np.arange(2)})["x"].tolist() == [0, 1]


def cut(place: Path) -> None:
    with open(place / "x.npy", "r+b") as file:
        file.truncate(file.seek(0, 2) - 1)


def empty(place: Path) -> None:
    (place / "x.npy").write_bytes(b"")


def no_array(place: Path) -> None:
    (place / "x.npy").write_bytes(b"\0" * (place / "x.npy").stat().st_size)


def without_array(place: Path) -> None:
    (place / "x.npy").unlink()


def without_sizes(place: Path) -> None:
    (place / "sizes.json").unlink()


def half_the_sizes(place: Path) -> None:
    (place / "sizes.json").write_text('{"x.npy"')


@pytest.mark.parametrize(
    "damage", [cut, empty, no_array, without_array, without_sizes, half_the_sizes]
)
def test_a_damaged_folder_is_built_again_with_one_line(damage: Any, cache: Path) -> None:
    cached("key", lambda: {"x": np.arange(100)})
    damage(cache / "key")
    with pytest.warns(
        UserWarning, match=r"^the cache .*key is damaged \(.*\); rebuilding it$"
    ) as lines:
        found = cached("key", lambda: {"x": np.arange(100)})
    assert len(lines) == 1
    assert found["x"].tolist() == list(range(100))
    assert cached("key", never)["x"].tolist() == list(range(100))
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
    """A process which stops in the middle of its building until it is told to go on."""

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

    def go_on(self) -> None:
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


def test_of_two_processes_that_build_at_once_both_get_the_same(
    builders: list[Builder], cache: Path
) -> None:
    assert [builder.line() for builder in builders] == ["half", "half"]
    assert not (cache / "key").exists(), "nothing half-built is there to be found"
    for builder in builders:
        builder.go_on()
        assert builder.line() == RESULT
        assert builder.process.wait() == 0
    assert [path.name for path in cache.iterdir()] == ["key"], "the second one dropped its own"


def test_what_a_killed_process_left_is_never_taken_for_finished_and_goes(
    builders: list[Builder], cache: Path
) -> None:
    assert [builder.line() for builder in builders] == ["half", "half"]
    killed, living = builders
    killed.process.send_signal(signal.SIGKILL)
    killed.process.wait()
    assert len(list(cache.iterdir())) == 2
    assert not (cache / "key").exists()
    assert (
        cached("key", lambda: {"x": np.arange(1000), "y": np.arange(1000) ** 2})["y"][-1] == 999**2
    )
    left = [path.name for path in cache.iterdir() if path.name != "key"]
    assert len(left) == 1, "the dead one's folder is gone, the living one's is not"
    assert f".{living.process.pid}@" in left[0]
    living.go_on()
    assert living.line() == RESULT
    assert living.process.wait() == 0
    assert [path.name for path in cache.iterdir()] == ["key"]
