"""From flags and YAML to experiments: equal settings make equal runs, and errors are one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from own_parts import Color, Net, Painted, Slow
from run_files import SHORT, asked, result_of

from everloop.loop import EWC, Replay
from everloop.scenarios import Experiment, SplitDigits, arguments
from everloop.scenarios.cli import main
from everloop.scenarios.names import Factory


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "words",
    [
        [
            "split-digits",
            "--strategies",
            "ewc,replay",
            "--ewc.strength",
            "7",
            "--seed",
            "3",
            "--training.rate",
            "cosine",
        ],
        [
            "split-digits",
            "--optimizer",
            "sgd",
            "--optimizer.momentum",
            "0.9",
            "--training.learning-rate",
            "0.05",
        ],
        [
            "own_parts:Painted",
            "--color",
            "green",
            "--place",
            "a/b",
            "--names",
            "x,y",
            "--share",
            "0.25",
        ],
        [
            "split-digits",
            "--strategies",
            "own_parts:Slow",
            "--Slow.factor",
            "0.25",
            "--network",
            "own_parts:Net",
            "--network.width",
            "5",
        ],
        [
            "split-digits",
            "--tasks",
            "8-9,0",
            "--scenario-type",
            "task",
            "--strategies",
            "packnet",
            "--packnet.retrain-steps",
            "2",
        ],
    ],
    ids=["strategies", "optimizer", "own scenario", "own strategy and network", "tasks"],
)
def test_the_config_of_a_run_repeats_it_to_the_bit(words: list[str]) -> None:
    assert main(["run", *words, *SHORT, "--quiet", "--out", "a"]) == 0
    assert main(["run", "--config", "a/config.yaml", "--quiet", "--out", "b"]) == 0
    assert result_of("a") == result_of("b")
    assert Path("a/config.yaml").read_text() == Path("b/config.yaml").read_text()


def test_a_printed_config_makes_the_same_run(capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "split-digits",
        "--strategies",
        "ewc,replay",
        "--replay.capacity",
        "20",
        "--optimizer",
        "AdamW",
        "--optimizer.weight-decay",
        "0.1",
        *SHORT,
    ]
    assert main(["run", *words, "--print-config"]) == 0
    text = capsys.readouterr().out
    Path("mine.yaml").write_text(text)
    assert asked("--config", "mine.yaml").config() == asked(*words).config()
    comments = [line.strip() for line in text.splitlines() if line.strip().startswith("#")]
    assert any("Passes over each task's examples" in line for line in comments)
    assert yaml.safe_load(text)["optimizer"] == {"class": "AdamW", "weight_decay": 0.1}
    assert not Path("runs").exists()


def test_flags_win_over_the_file_and_the_scenario_may_be_named_in_either() -> None:
    Path("mine.yaml").write_text(
        "scenario: split-mnist\nstrategies: [replay]\nepochs: 4\nreplay: {capacity: 9}\nseed: 5\n"
    )
    for words in (
        ["split-digits", "--config", "mine.yaml", "--replay.capacity", "8"],
        ["split-digits", "--replay.capacity=8", "--config=mine.yaml"],
    ):
        experiment = asked(*words)
        assert isinstance(experiment.scenario, SplitDigits)
        assert (experiment.scenario.epochs, experiment.seed, experiment.names) == (4, 5, ["replay"])
        assert experiment.settings["replay"]["capacity"] == 8
        assert experiment.settings["replay"]["batch_size"] == 32, "the scenario's own"


@pytest.mark.parametrize("group", ["training", "replay"])
def test_a_file_can_stand_for_a_group(group: str) -> None:
    Path("part.yaml").write_text(
        {"training": "learning_rate: 0.5\n", "replay": "capacity: 9\n"}[group]
    )
    experiment = asked("split-digits", "--strategies", "replay", f"--{group}", "part.yaml")
    assert isinstance(experiment.scenario, SplitDigits)
    assert experiment.scenario.training.learning_rate == (0.5 if group == "training" else 0.001)
    assert experiment.settings["replay"]["capacity"] == (9 if group == "replay" else 500)


def test_strategies_are_taken_as_a_string_a_list_or_by_their_paths() -> None:
    for given_ in ("ewc,replay", "ewc, replay", ["ewc", "replay"]):
        assert Experiment(SplitDigits(), given_).names == ["ewc", "replay"]
    experiment = Experiment(
        SplitDigits(), ["own_parts:Slow", "replay"], settings={"Slow": {"factor": 0.25}}
    )
    slow, replay = experiment.strategies
    assert isinstance(slow, Slow)
    assert slow.factor == 0.25
    assert isinstance(replay, Replay)
    with pytest.raises(ValueError, match=r"^Slow: factor is -1; it must be 0 or more$"):
        Experiment(SplitDigits(), "own_parts:Slow", settings={"Slow": {"factor": -1}})
    with pytest.raises(
        ValueError,
        match=r"^ReplayX has no setting|^Replay has no setting 'size'; it has strength, capacity",
    ):
        Experiment(SplitDigits(), "replay", settings={"replay": {"size": 3}})


@pytest.mark.parametrize(
    ("scenario", "strategies", "said"),
    [
        ("split-digits", "ewc", "scenario is 'split-digits'; write SplitDigits()"),
        (SplitDigits, "ewc", "scenario is the class SplitDigits; write SplitDigits()"),
        (3, "ewc", "scenario is 3; it must be a scenario object, such as SplitDigits()"),
        (
            SplitDigits(optimizer="adamw"),
            "ewc",
            "optimizer is 'adamw'; write optimizer=Factory('adamw')",
        ),  # type: ignore[arg-type]
        (SplitDigits(network=Net), "ewc", "write network=Factory('package.module:Class')"),  # type: ignore[arg-type]
        (
            SplitDigits(),
            [EWC(strength=3.0)],
            "strategies contain EWC itself; write its name 'ewc' instead, and its arguments as "
            "settings={'ewc': {...}}",
        ),
        (SplitDigits(), EWC, "strategies contain EWC itself; write its name 'ewc' instead"),
        (
            SplitDigits(),
            Slow(),
            "strategies contain Slow itself; write its name 'own_parts:Slow' instead, and its "
            "arguments as settings={'Slow': {...}}",
        ),
        (SplitDigits(), [7], "strategies contain 7; name them as text, such as 'ewc,replay'"),
    ],
)
def test_a_mistake_in_python_says_what_to_write(scenario: Any, strategies: Any, said: str) -> None:
    with pytest.raises(TypeError) as refused:
        Experiment(scenario, strategies)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_each_note_is_one_line_even_before_a_run_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A pipe does not wrap long notes."""
    for seed, status in (("0", 0), ("1", 2)):
        assert (
            main(
                [
                    "run",
                    "split-digits",
                    *SHORT,
                    "--replay.capacity",
                    "3",
                    "--seed",
                    seed,
                    "--out",
                    "x",
                ]
            )
            == status
        )
        notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
        assert "note: replay.capacity has no effect without --strategies replay" in notes
        assert any(
            len(line) > 100 and line.endswith(("--iterations", "--batch-size")) for line in notes
        )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--strategies", "replay", "--ewc.strength", "3"],
            "note: ewc.strength has no effect without --strategies ewc",
        ),
        (
            ["--iterations", "2", "--epochs", "3"],
            "note: epochs has no effect: iterations sets the amount of training",
        ),
        (["--data", "owner/digits"], "note: data has no effect: the digits come with scikit-learn"),
    ],
)
def test_a_setting_without_effect_is_noted(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "split-digits", *SHORT, *words, "--out", "x"]) == 0
    assert said in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("scenario", "setting", "value"),
    [
        ("switching-plant --algorithm sac", "n_epochs", "7"),
        ("switching-plant", "gradient_steps", "7"),
        ("split-mnist", "norm", "group"),
        ("split-mnist", "pretrain_epochs", "3"),
        ("split-mnist", "blurry_ratio", "0.5"),
        ("split-mnist --architecture resnet18", "layers", "3"),
        ("split-mnist --network own_parts:Net", "width", "3"),
        ("domain-text --network own_parts:Net", "size", "3"),
        ("domain-text", "data", "owner/texts"),
    ],
)
def test_every_scenario_knows_its_settings_without_effect(
    scenario: str, setting: str, value: str
) -> None:
    request = arguments.read([*scenario.split(), f"--{setting}", value])
    scenario_ = arguments.build(request.scenario, request.values, request.given)
    assert [line.split()[0] for line in request.notes(scenario_)] == [setting]


def test_a_null_seed_is_the_runs_seed() -> None:
    for strategies in ("replay", "none"):
        Path("mine.yaml").write_text(
            f"strategies: [{strategies}]\nseed: 4\nreplay: {{seed: null}}\nlora: {{seed: null}}\n"
        )
        experiment = asked("split-digits", "--config", "mine.yaml")
        assert experiment.settings.get("replay", {"seed": 4})["seed"] == 4


def test_different_settings_never_share_a_folder() -> None:
    variants = [
        asked("split-digits"),
        asked("split-digits", "--epochs", "9"),
        asked("split-digits", "--strategies", "replay"),
        asked("split-digits", "--strategies", "replay", "--replay.capacity", "9"),
        asked("split-digits", "--optimizer", "sgd"),
        asked("own_parts:Painted"),
        asked("own_parts:Painted", "--color", "green"),
        asked("split-digits", "--seed", "1"),
    ]
    folders = [experiment.folder() for experiment in variants]
    assert len(set(folders)) == len(folders)
    assert folders[0].parent == folders[-1].parent, "seeds of the same settings lie side by side"
    assert asked("split-digits", "--epochs", "10").folder() == folders[0], "the default, given"


def test_python_and_the_command_line_write_the_same_config() -> None:
    made = Painted(color=Color.green, optimizer=Factory("sgd", {"momentum": 0.5}))
    words = [
        "own_parts:Painted",
        "--color",
        "green",
        "--optimizer",
        "sgd",
        "--optimizer.momentum",
        "0.5",
        "--strategies",
        "ewc",
    ]
    assert Experiment(made, "ewc").config() == asked(*words).config()


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("0-4", [0, 1, 2, 3, 4]), ("3", [3]), ("0,2,5-7", [0, 2, 5, 6, 7]), (" 1 , 2 ", [1, 2])],
)
def test_seeds_are_written_as_ranges_and_lists(text: str, seeds: list[int]) -> None:
    assert arguments.read_seeds(text) == seeds


# --- files with any content
