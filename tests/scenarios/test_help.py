"""The command's help and lists: every setting is explained, within 80 columns and in a pipe."""

import json
import signal
import subprocess
import sys

import pytest

from everloop.loop import PRETRAINING, STRATEGIES
from everloop.scenarios import SCENARIOS
from everloop.scenarios.cli import main


def test_list_names_scenarios_strategies_and_worlds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    for name in (
        "switching-plant",
        "split-digits",
        "none",
        "joint",
        "ewc",
        "replay",
        "everloop/Plant-v0",
        "everloop/ImageStream-v0",
    ):
        assert name in printed


def test_list_speaks_json_and_a_pipe_gets_a_line_for_each(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["list", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert set(content["scenarios"]) == set(SCENARIOS)
    assert set(content["strategies"]) == {"none", "joint", *STRATEGIES, *PRETRAINING}
    assert "everloop/Plant-v0" in content["worlds"]
    assert main(["list"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    for name, text in content["strategies"].items():
        assert f"{name} {text}" in [" ".join(line.split()) for line in lines]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--help"],
            [
                "usage: everloop",
                "list",
                "run",
                "advise",
                "reproduce",
                "0 Done.",
                "2 A mistake",
                "130 ",
                "143 ",
            ],
        ),
        (["run", "--help"], ["split-digits", "--strategies", "--config"]),
        (
            ["run", "split-digits", "--help"],
            ["--epochs", "--training.learning-rate", "[0.001]", "--jobs", "ewc"],
        ),
        (["run", "split-digits", "--help", "ewc"], ["--ewc.strength", "[1000.0]"]),
        (["run", "--help", "replay"], ["--replay.capacity"]),
        (
            ["run", "split-digits", "--help", "own_parts:Slow"],
            ["Scales every gradient.", "--Slow.factor", "[0.5]"],
        ),
        (["run", "--help", "own_parts:Painted"], ["--color", "one of red, green"]),
        (["advise", "--help"], ["--boundaries", "one of known, unknown"]),
        (["reproduce", "--help"], ["--rows", "--report", "three-types Split MNIST, three types"]),
        (["list", "--help"], ["usage: everloop list", "--json"]),
        (["--version"], ["everloop 0.1.0"]),
    ],
)
def test_help_fits_into_80_columns_and_names_every_setting(
    words: list[str],
    said: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    for part in said:
        assert part in " ".join(printed.split())


def test_every_setting_has_its_meaning_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    for words in [
        ["advise"],
        ["reproduce"],
        *(["run", name] for name in SCENARIOS),
        *(["run", name] for name in STRATEGIES),
    ]:
        assert main([*words, "--help"]) == 0
        assert "(no description)" not in capsys.readouterr().out, words


def test_a_reader_that_stops_early_gets_no_error() -> None:
    """As `everloop advise | head -1` does."""
    words = [sys.executable, "-m", "everloop", "advise"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 128 + signal.SIGPIPE
