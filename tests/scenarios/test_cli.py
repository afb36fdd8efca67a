"""The command line: the files of a run, and one clear line for every mistake."""

import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import yaml
from run_files import fails, result_of
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from everloop.scenarios.cli import main

HERE = Path(__file__).parent
DIGITS = ["run", "split-digits", "--epochs", "1", "--eval-every", "100000"]
SMALL = ["--token-size", "8", "--hidden-size", "8", "--eval-every", "100000"]
PLANT = ["run", "switching-plant", "--steps", "1024", "--num-tasks", "2", *SMALL]


def test_a_run_leaves_settings_result_and_events(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert (
        main(
            [
                *DIGITS,
                "--strategies",
                "ewc,replay",
                "--seed",
                "3",
                "--out",
                str(out),
                "--replay.capacity=50",
            ]
        )
        == 0
    )
    result = json.loads((out / "result.json").read_text())
    assert result["complete"]
    assert (result["scenario"], result["strategies"], result["seed"]) == (
        "split-digits",
        ["ewc", "replay"],
        3,
    )
    assert np.shape(result["scores"]) == (5, 5)
    assert result["average_score"] == pytest.approx(np.mean(result["scores"][-1]))
    assert result["tasks"] == ["0-1", "2-3", "4-5", "6-7", "8-9"]
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert (config["scenario"], config["strategies"], config["seed"], config["threads"]) == (
        "split-digits",
        ["ewc", "replay"],
        3,
        1,
    )
    assert config["epochs"] == 1
    assert config["replay"] == {
        "strength": 1.0,
        "capacity": 50,
        "batch_size": 32,
        "memory": "reservoir",
        "current": False,
    }
    environment = json.loads((out / "environment.json").read_text())
    assert {"torch", "stable-baselines3", "everloop"} <= set(environment["packages"])
    assert {"git_revision", "command", "machine", "python", "host", "processor", "started"} <= set(
        environment
    )
    assert (
        abs(
            datetime.fromisoformat(environment["started"]).timestamp()
            - (out / "environment.json").stat().st_mtime
        )
        < 60
    )
    if Path("/proc/cpuinfo").exists() and "model name" in (
        info := Path("/proc/cpuinfo").read_text()
    ):
        assert f": {environment['processor']}\n" in info
    events = EventAccumulator(str(out)).Reload()
    assert events.Scalars("score/8-9")[-1].value == pytest.approx(result["scores"][-1][-1])


def test_joint_training_has_one_row_and_null_where_nothing_can_be_computed(tmp_path: Path) -> None:
    assert main([*DIGITS, "--strategies", "joint", "--out", str(tmp_path / "x")]) == 0
    result = json.loads((tmp_path / "x" / "result.json").read_text())
    assert len(result["scores"]) == 1
    assert result["forgetting"] is None
    assert result["backward_transfer"] is None
    assert result["average_score"] > 50


SAC = [*PLANT, "--algorithm", "sac"]


@pytest.mark.parametrize(
    "words",
    [DIGITS, PLANT, [*PLANT, "--recurrent", "false"], SAC],
    ids=["stream", "recurrent control", "control", "off-policy control"],
)
def test_the_same_seed_gives_the_same_result_to_the_bit(words: list[str], tmp_path: Path) -> None:
    results = []
    for name in ("a", "b"):
        out = ["--out", str(tmp_path / name), "--seed", "5"]
        assert main([*words, "--strategies", "ewc,replay", *out]) == 0
        results.append(result_of(tmp_path / name))
    assert results[0] == results[1]


def test_another_seed_gives_another_result(tmp_path: Path) -> None:
    for seed in ("5", "6"):
        assert main([*DIGITS, "--out", str(tmp_path / seed), "--seed", seed]) == 0
    assert result_of(tmp_path / "5")["scores"] != result_of(tmp_path / "6")["scores"]


@pytest.mark.parametrize("words", [DIGITS, PLANT], ids=["stream", "control"])
def test_strategies_of_strength_0_are_plain_training_to_the_bit(
    words: list[str], tmp_path: Path
) -> None:
    off = ["--strategies", "ewc,replay", "--ewc.strength", "0", "--replay.strength", "0"]
    assert main([*words, *off, "--out", str(tmp_path / "off")]) == 0
    assert main([*words, "--strategies", "none", "--out", str(tmp_path / "none")]) == 0
    off_result, plain = (
        json.loads((tmp_path / name / "result.json").read_text()) for name in ("off", "none")
    )
    assert off_result["scores"] == plain["scores"]


def test_tasks_choose_what_is_trained_and_in_which_order(tmp_path: Path) -> None:
    assert main([*DIGITS, "--tasks", "8-9,0", "--out", str(tmp_path / "x")]) == 0
    result = json.loads((tmp_path / "x" / "result.json").read_text())
    assert result["phases"] == [["8-9"], ["0-1"]]
    assert result["scores"][0][4] > result["before"][4]


def test_a_control_world_without_a_reference_shows_returns_and_how_to_scale_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is the same as with the reference: in the terminal, result.json and TensorBoard."""
    small = [*PLANT[2:], "--recurrent", "false"]
    assert (
        main(["run", "switching-plant", *small, "--quiet", "--out", str(tmp_path / "scaled")]) == 0
    )
    assert main(["run", "own_parts:Unscaled", *small, "--out", str(tmp_path / "plain")]) == 0
    scaled, plain = (
        json.loads((tmp_path / name / "result.json").read_text()) for name in ("scaled", "plain")
    )
    assert (scaled["metric"], plain["metric"]) == (
        {"name": "score", "unit": "", "new_classes": False},
        {"name": "return", "unit": "", "new_classes": False},
    )
    assert plain["returns"] == scaled["returns"] == plain["scores"] != scaled["scores"]
    assert plain["forgetting"] == pytest.approx(plain["scores"][0][0] - plain["scores"][1][0])
    printed = " ".join(capsys.readouterr().out.split())
    assert "average return" in printed
    assert "drop of return" in printed
    assert "reference(task) return (random, best)" in printed
    events = EventAccumulator(str(tmp_path / "plain")).Reload()
    assert events.Scalars("score/plant-1")[-1].value == pytest.approx(
        plain["scores"][-1][1], rel=1e-5
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "no-such"], ["'no-such'", "switching-plant", "split-digits"]),
        (["run", "split-digit"], ["'split-digit'", "Did you mean 'split-digits'?"]),
        (["run"], ["no scenario is named", "split-digits"]),
        (["run", "split-digits", "again"], ["'again' is not expected"]),
        (["run", "no.module:Thing"], ["'no.module:Thing'"]),
        (["run", "json:JSONDecoder"], ["JSONDecoder", "Scenario"]),
        (["frobnicate"], ["frobnicate", "list, run, "]),
        (["lits"], ["unknown command 'lits'. Did you mean 'list'?"]),
        (["list", "all"], ["'all' is not expected"]),
        (
            ["advise", "--boundaries", "unknwon"],
            ["boundaries is 'unknwon'", "known, unknown", "Did you mean 'unknown'?"],
        ),
        (["advise", "--tasks", "0"], ["tasks is 0"]),
        (["reproduce"], ["no table is named"]),
        (["reproduce", "three-tpyes"], ["three-tpyes"]),
        ([*DIGITS, "--strategies", "ewc,mystery"], ["'mystery'", "derpp, er_ace, "]),
        (
            [*DIGITS, "--strategies", "replya"],
            ["unknown strategy 'replya'. Did you mean 'replay'?"],
        ),
        ([*DIGITS, "--strategies", "none;"], ["no strategy is named; choose from none, joint"]),
        ([*DIGITS, "--strategies", "no.module:Slow"], ["'no.module:Slow' can't be imported"]),
        (
            [*DIGITS, "--strategies", "json:JSONDecoder"],
            ["must be a subclass of everloop.loop.Strategy"],
        ),
        ([*DIGITS, "--import", "no_such_module"], ["'no_such_module' can't be imported"]),
        ([*DIGITS, "--optimizer", "AdmW"], ["unknown optimizer 'AdmW'. Did you mean 'AdamW'?"]),
        ([*DIGITS, "--optimizer", "LBFGS"], ["LBFGS", "choose another one"]),
        ([*DIGITS, "--optimizer", "json:JSONDecoder"], ["it must be a torch optimizer"]),
        (
            [*DIGITS, "--optimizer", "sgd", "--optimizer.momentun", "0.9"],
            ["'optimizer.momentun'", "Did you mean 'optimizer.momentum'?"],
        ),
        (
            [*DIGITS, "--optimizer", "sgd", "--optimizer.momentum", "fast"],
            ["optimizer.momentum is 'fast'; it must be a number"],
        ),
        (
            [*DIGITS, "--optimizer", "sgd", "--optimizer.momentum", "-1"],
            ["optimizer sgd can't be made", "momentum"],
        ),
        (
            [*DIGITS, "--optimizer.lr", "1"],
            ["unknown setting 'optimizer.lr'. Did you mean 'training.learning_rate'?"],
        ),
        ([*DIGITS, "--network", "torch.nn:Bilinear"], ["network torch.nn:Bilinear can't be made"]),
        ([*DIGITS, "--network", "torch.nn:NoSuch"], ["has no 'NoSuch'"]),
        ([*DIGITS, "--config", "no-such.yaml"], ["no-such.yaml: no such file"]),
        ([*DIGITS, "--training", "5"], ["training is '5'; it must be a mapping"]),
        ([*DIGITS, "--training.learning-rate", "0"], ["training: learning_rate is 0"]),
        ([*DIGITS, "--learning-rate", "1"], ["Did you mean 'training.learning_rate'?"]),
        (
            [*DIGITS, "--strategies", "gdumb", "--lr", "1"],
            ["Did you mean 'training.learning_rate'?"],
        ),
        (
            [*DIGITS, "--strategies", "replay", "--capacity", "1"],
            ["Did you mean 'replay.capacity'?"],
        ),
        (
            ["run", "switching-plant", "--epochs", "1"],
            ["unknown setting 'epochs'. Did you mean 'steps'?"],
        ),
        (
            [*DIGITS, "--strategies", "ewc+replay"],
            ["unknown strategy 'ewc+replay'. Did you mean 'ewc,replay'?"],
        ),
        (
            [*DIGITS, "--strategies", "ewc", "replay"],
            ["unexpected 'replay'; separate strategies by commas: ewc,replay"],
        ),
        (
            [*DIGITS, "--strategies", "mystrat.py:Slow"],
            ["'mystrat.py:Slow' names a file; write mystrat:Slow"],
        ),
        (
            [*DIGITS, "--network", "my/net.py:Net"],
            ["'my/net.py:Net' names a file; write my.net:Net"],
        ),
        (["run", "mypics.py:Pics"], ["'mypics.py:Pics' names a file; write mypics:Pics"]),
        ([*DIGITS, "--seeds", "0-2", "--seed", "4"], ["--seed and --seeds exclude each other"]),
        (["run", "split-digits", "--epochs"], ["epochs has no value; it must be a whole number"]),
        ([*DIGITS, "--strategies"], ["strategies has no value"]),
        ([*DIGITS, "--config"], ["config has no value"]),
        (["advise", "--tasks"], ["tasks has no value"]),
        ([*DIGITS, "--seeds", "4-2"], ["seeds is '4-2', which names no seed"]),
        ([*DIGITS, "--seeds", "a"], ["seeds is 'a'; write them as 0-4"]),
        ([*DIGITS, "--seeds", "1,1"], ["seeds is '1,1'"]),
        ([*DIGITS, "--jobs", "0"], ["jobs is 0"]),
        ([*DIGITS, "--quiet", "maybe"], ["'maybe' is not expected"]),
        ([*DIGITS, "--quiet=maybe"], ["quiet is 'maybe'; it must be true or false"]),
        ([*DIGITS, "--strategies", ""], ["no strategy is named; choose from none, joint"]),
        ([*DIGITS, "--strategies", "joint,ewc"], ["'joint'"]),
        ([*DIGITS, "--strategies", "ewc,ewc"], ["'ewc'", "twice"]),
        ([*DIGITS, "--tasks", "0-1,nine"], ["'nine'", "0-1"]),
        ([*DIGITS, "--tasks", "7"], ["7", "0 to 4"]),
        ([*DIGITS, "--tasks", ""], ["schedule", "at least one"]),
        (
            [*DIGITS, "--strategies", "ewc", "--ewc.strength", "-1"],
            ["ewc: strength is -1", "0 or more"],
        ),
        ([*DIGITS, "--strategies", "replay", "--replay.strength=-0.5"], ["-0.5", "0 or more"]),
        ([*DIGITS, "--strategies", "ewc", "--ewc.anchors", "many"], ["many", "separate"]),
        (["run", "split-digits", "--epochs", "0"], ["epochs is 0"]),
        (["run", "split-digits", "--epochs", "many"], ["many"]),
        ([*DIGITS, "--scenario-type", "other"], ["other", "domain"]),
        ([*DIGITS, "--no-such-option", "1"], ["'no_such_option'", "--help"]),
        ([*DIGITS, "--epohcs", "1"], ["unknown setting 'epohcs'. Did you mean 'epochs'?"]),
        (
            [*DIGITS, "--ewc.strenght", "1"],
            ["unknown setting 'ewc.strenght'. Did you mean 'ewc.strength'?"],
        ),
        ([*DIGITS, "--ewc.zzzzzz", "1"], ["ewc has strength, anchors"]),
        ([*DIGITS, "--seed", "-4"], ["-4"]),
        ([*DIGITS, "--threads", "0"], ["threads is 0"]),
        (["run", "switching-plant", "--num-tasks", "0"], ["num_tasks is 0"]),
        (["run", "switching-plant", "--steps", "0"], ["steps are [0"]),
        (["run", "switching-plant", "--learning-rate", "-1"], ["learning_rate is -1"]),
        (["run", "switching-plant", "--n-epochs", "0"], ["n_epochs is 0"]),
        (["run", "switching-plant", "--batch-size", "0"], ["batch_size is 0"]),
        (["run", "switching-plant", "--n-steps", "-16"], ["n_steps is -16"]),
        (
            ["run", "switching-plant", "--algorithm", "sac", "--recurrent", "true"],
            ["recurrent is True, which sac does not support"],
        ),
        (["run", "switching-plant", "--algorithm", "dqn"], ["dqn", "sac"]),
        (["run", "switching-plant", "--gradient-steps", "0"], ["gradient_steps is 0"]),
        (["run", "switching-plant", "--world-seed", "-1"], ["world_seed is -1"]),
        (
            ["run", "switching-plant", "--fresh-rollouts", "5"],
            ["fresh_rollouts is 5", "multiple of 16"],
        ),
        (
            ["run", "switching-plant", "--num-tasks", "40", "--strategies", "joint"],
            ["40 tasks can't be trained at once", "choose at most 32 tasks"],
        ),
        (
            [*DIGITS, "--strategies", "joint", "--tasks", "0,1,0"],
            ["tasks holds task 0 several times", "name each task once"],
        ),
        (["run", "everloop.scenarios:Scenario"], ["everloop.scenarios:Scenario", "name"]),
        ([*DIGITS, "--strategies", "none", "--ewc.strength", "-1"], ["-1", "0 or more"]),
        ([*DIGITS, "--seed", "99999999999999"], ["99999999999999"]),
        ([*DIGITS, "--strategies", "packnet"], ["packnet", "scenario_type task"]),
        (
            [*DIGITS, "--strategies", "continual_backprop"],
            ["continual_backprop finds no hidden units", "two linear layers in a row"],
        ),
        (
            [*DIGITS, "--strategies", "replay,packnet", "--scenario-type", "task"],
            ["packnet must come first", "it is number 2"],
        ),
        (["run", "switching-plant", "--strategies", "icarl"], ["icarl", "replay"]),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_a_mistake_ends_in_one_line_and_writes_nothing(
    words: list[str],
    said: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    fails(words, capsys, *said)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("scenario", "said"),
    [
        ("FailingSensor", ["sensor_0", "nan", "at step 2272"]),
        ("ExplodingLoss", ["loss is nan", "at step 640"]),
    ],
)
def test_nan_stops_the_run_says_where_and_keeps_what_was_logged(
    scenario: str,
    said: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(HERE)
    out = tmp_path / "x"
    fails(
        ["run", f"broken_worlds:{scenario}", "--eval-every", "100", "--out", str(out)],
        capsys,
        *said,
        str(out),
    )
    assert not json.loads((out / "result.json").read_text())["complete"]
    assert (out / "config.yaml").exists()
    events = EventAccumulator(str(out)).Reload()
    scores = [tag for tag in events.Tags()["scalars"] if tag.startswith("score/")]
    assert scores
    assert len(events.Scalars(scores[0])) > 1


def test_a_mistake_in_the_code_of_a_world_keeps_its_kind_and_place(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The refusal of a value, which says what to do, needs none."""
    monkeypatch.chdir(HERE)
    lines = (HERE / "broken_worlds.py").read_text().splitlines()
    number = next(i for i, line in enumerate(lines, 1) if "np.zeros(3) @" in line)
    fails(
        ["run", "broken_worlds:BrokenWorld"],
        capsys,
        "error: ValueError: matmul",
        f"(broken_worlds.py, line {number})",
    )
    assert main(["run", "broken_worlds:BadSetting"]) == 2
    assert capsys.readouterr().err == "everloop: error: num_envs is 0; it must be 1 or more\n"


def test_the_module_is_the_same_command(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "everloop", "run", "nothing"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("everloop: error: unknown scenario 'nothing'")
    assert done.stderr.count("\n") == 1
