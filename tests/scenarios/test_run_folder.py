"""The folder of a run: one run at a time, and old files stay until the new run is complete."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from run_files import fails

from everloop.loop.disk import remove, write_json
from everloop.scenarios import run_command
from everloop.scenarios.cli import main
from everloop.scenarios.folder import opened

SHORT = ["run", "split-digits", "--iterations", "3", "--quiet"]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def contents(folder: Path) -> dict[str, bytes]:
    """Return the content of every file in a folder and in its folders."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_of_runs_started_at_once_in_one_folder_all_but_one_are_refused(
    tmp_path: Path,
) -> None:
    words = ["run", "split-digits", "--iterations", "60", "--quiet", "--out", "x"]
    begun = [
        subprocess.Popen(
            [sys.executable, "-m", "everloop", *words, "--seed", str(seed)],
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in begun]
    assert sorted(process.returncode for process in begun) == [0, 2]
    refused = [error for error in errors if error]
    assert all(
        "another run is writing to x" in error or "x already holds" in error for error in refused
    )
    assert [error.count("\n") for error in refused] == [1]
    seed = next(i for i, process in enumerate(begun) if process.returncode == 0)
    assert json.loads((tmp_path / "x" / "result.json").read_text())["seed"] == seed


@pytest.mark.parametrize("where", [[], ["--out", "x"]], ids=["default", "out"])
def test_a_complete_run_of_the_same_settings_is_kept_and_shown(
    where: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SHORT, *where]) == 0
    folder = Path("x") if where else next(Path("runs/split-digits").glob("none-*/0"))
    before = contents(folder)
    written = (folder / "environment.json").stat().st_mtime_ns
    capsys.readouterr()
    assert main([word for word in [*SHORT, *where] if word != "--quiet"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (
        f"split-digits none seed 0: already complete in {folder}; use --overwrite to run it again"
        in lines
    )
    assert any("average accuracy" in line for line in lines)
    assert main([*SHORT, *where, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(before["result.json"])
    assert contents(folder) == before
    assert main([*SHORT, *where, "--overwrite"]) == 0
    assert (folder / "environment.json").stat().st_mtime_ns > written


def test_a_run_without_a_checkpoint_starts_over_and_one_with_other_settings_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*SHORT, "--out", "x"]) == 0
    whole = json.loads(Path("x/result.json").read_text())
    cut = {**whole, "evaluations": whole["evaluations"][:-1]}
    Path("x/result.json").write_text(json.dumps(cut))
    remove(Path("x/checkpoints"))
    assert main([*SHORT, "--out", "x", "--iterations", "4"]) == 2
    assert (
        "x already holds an unfinished run; choose another folder (--out)"
        in capsys.readouterr().err
    )
    assert json.loads(Path("x/result.json").read_text()) == cut
    assert main([word for word in [*SHORT, "--out", "x"] if word != "--quiet"]) == 0
    assert (
        "split-digits none seed 0: writing to x; the unfinished run there starts over"
        in capsys.readouterr().out.splitlines()
    )
    anew = json.loads(Path("x/result.json").read_text())
    assert (anew["scores"], anew["complete"]) == (whole["scores"], True)


def test_a_folder_that_can_not_be_created_is_refused_before_training(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("locked").mkdir()
    Path("locked/.lock").mkdir()  # as in a folder that is read-only: its lock can't be taken
    for out, said in (
        ("/proc/x", "the folder /proc/x can't be created: "),
        ("locked", "the folder locked can't be written to: "),
    ):
        assert main([*SHORT, "--out", out]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line
        assert line.endswith("; choose another folder (--out)")
        assert "at step" not in line


def test_old_files_are_kept_until_the_new_run_is_complete(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*SHORT, "--out", "x"]) == 0
    old = {
        name: content
        for name, content in contents(Path("x")).items()
        if not name.startswith((".", "events"))
    }
    failing = [
        "run",
        "own_parts:Failing",
        "--quiet",
        "--out",
        "x",
        "--overwrite",
    ]
    for _ in range(2):  # a second failing attempt takes nothing of it either
        assert main(failing) == 2
        for name, content in old.items():
            first, *rest = Path(name).parts
            assert Path("x", f"{first}.old", *rest).read_bytes() == content
        assert len(list(Path("x").glob("events*.old"))) == 1
        assert not json.loads(Path("x/result.json").read_text())["complete"]
    assert main([*SHORT, "--seed", "4", "--out", "x", "--overwrite"]) == 0
    assert not list(Path("x").glob("*.old"))
    assert json.loads(Path("x/result.json").read_text())["seed"] == 4
    assert not Path("x/error.txt").exists()


def test_an_error_in_a_users_world_is_one_line_and_its_traceback_is_kept(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["run", "own_parts:Failing", "--eval-tasks", "seen", "--out", "x"]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert errors == [
        "everloop: error: RuntimeError at step 480: the sensor is unplugged; the traceback is in "
        "x/error.txt"
    ]
    text = Path("x/error.txt").read_text()
    assert "in failing" in text
    assert text.endswith("RuntimeError: the sensor is\nunplugged\n")
    assert main(["run", "own_parts:Failing", "--out", "x"]) == 2
    assert "x already holds an unfinished run" in capsys.readouterr().err


def test_a_full_disk_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message is the operating system's, whichever write fails first."""
    written = []

    def full(path: Path, content: dict[str, object]) -> None:
        written.append(path)
        if len(written) > 2:
            raise OSError(28, "No space left on device")
        write_json(path, content)

    monkeypatch.setattr("everloop.scenarios.record.write_json", full)
    assert main([*SHORT, "--out", "x"]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1
    assert "No space left on device" in errors[0]
    assert len(json.loads(Path("x/result.json").read_text())["scores"]) == 1, (
        "what was written before is whole"
    )


def test_a_full_disk_leaves_no_empty_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write = Path.write_text

    def full(path: Path, text: str) -> int:
        if path.name != "error.txt":
            return write(path, text)
        write(path, "")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    assert main(["run", "own_parts:Failing", "--quiet", "--out", "x"]) == 2
    assert (
        capsys.readouterr().err
        == "everloop: error: RuntimeError at step 480: the sensor is unplugged\n"
    )
    assert not Path("x/error.txt").exists()


def test_settings_that_can_not_be_written_leave_the_old_run_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = Path("x")
    assert main([*SHORT, "--out", "x"]) == 0
    before = names(folder)
    with (
        pytest.raises(TypeError),
        opened(folder, {"config.yaml": "new", "environment.json": None}, overwrite=True),
    ):  # type: ignore[dict-item]
        pass
    assert names(folder) == before
    assert "scenario: split-digits" in Path("x/config.yaml").read_text()


def test_a_missing_extra_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for package, words, extra in (
        ("river.drift", ["split-digits", "--training.rate", "drift"], "drift"),
        ("datasets", ["split-mnist", "--data", "some/data"], "data"),
        ("transformers", ["domain-text", "--folders", ".", "--checkpoint", "x"], "text"),
        ("peft", ["split-digits", "--scenario-type", "task", "--strategies", "lora"], "lora"),
    ):
        monkeypatch.setitem(sys.modules, package, None)
        assert main(["run", *words]) == 2
        errors = capsys.readouterr().err.strip().splitlines()
        assert len(errors) == 1
        assert f'pip install "everloop[{extra}]"' in errors[0]
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for seeds in (
        "0",
        "0-1",
    ):  # it draws as a run ends: its lack is said before anything is learned
        assert main([*SHORT, "--seeds", seeds]) == 2
        assert "needs the package matplotlib: pip install matplotlib" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_missing_data_is_refused_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    for data in ("typo", "some/folder/that/is/not/there"):
        assert main(["run", "split-mnist", "--data", data]) == 2
        assert f"source is {data!r}" in capsys.readouterr().err
    assert time.monotonic() - began < 10


def test_ctrl_c_is_one_line_and_status_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_command, "run_all", interrupted)
    assert main([*SHORT, "--seeds", "0-1"]) == 130
    assert (
        capsys.readouterr().err.strip()
        == "everloop: error: interrupted; the same command runs the rest"
    )


def test_a_folder_that_holds_a_run_is_refused_and_left_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x"
    assert main([*SHORT, "--out", str(out)]) == 0
    (out / "notes.txt").write_text("mine")
    before = contents(out)
    capsys.readouterr()
    fails(
        [*SHORT, "--out", str(out), "--seed", "1"],
        capsys,
        f"{out} already holds a complete run",
        "(--overwrite, in Python overwrite=True)",
    )
    assert contents(out) == before
    assert main([*SHORT, "--out", str(out), "--seed", "1", "--overwrite"]) == 0
    assert json.loads((out / "result.json").read_text())["seed"] == 1
    assert (out / "notes.txt").read_text() == "mine"
    assert len(list(out.glob("events*"))) == 1


def test_a_file_in_the_place_of_the_folder_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x").write_text("")
    for out in (tmp_path / "x", tmp_path / "x" / "y"):
        fails([*SHORT, "--out", str(out)], capsys, f"{tmp_path / 'x'} is a file")
    assert (tmp_path / "x").read_text() == ""
