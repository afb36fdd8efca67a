"""A user's own strategies, networks and optimizers, by name and by path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from own_parts import Net
from run_files import SHORT, asked, result_of

from everloop.loop import STRATEGIES
from everloop.scenarios.cli import main


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_scaling_gradients_equals_scaling_the_learning_rate() -> None:
    """Under plain descent, gradients times 1/4 equal a quarter of the learning rate, to the bit."""
    plain = ["split-digits", *SHORT, "--optimizer", "sgd", "--quiet"]
    assert (
        main(
            [
                "run",
                *plain,
                "--strategies",
                "own_parts:Slow",
                "--Slow.factor",
                "0.25",
                "--training.learning-rate",
                "0.5",
                "--out",
                "a",
            ]
        )
        == 0
    )
    assert main(["run", *plain, "--training.learning-rate", "0.125", "--out", "b"]) == 0
    assert result_of("a")["scores"] == result_of("b")["scores"]


def test_a_users_network_learns_with_a_head_for_every_task() -> None:
    for kind, outputs in (("class", 10), ("task", 10)):
        experiment = asked(
            "split-digits",
            "--network",
            "own_parts:Net",
            "--network.width",
            "64",
            "--scenario-type",
            kind,
        )
        module: Any = experiment.learner.module
        assert isinstance(module.backbone.net, Net)
        assert (module.heads.linear.in_features, module.heads.linear.out_features) == (64, outputs)
        learned = experiment.run()
        assert learned.learning_accuracy is not None
        assert learned.learning_accuracy > 60
    maps: Any = asked("split-digits", "--network", "own_parts:NoShape").learner.module
    assert maps.backbone.size == 4 * 6 * 6, "feature maps are flattened"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--network", "own_parts:Wrong"],
            "network Wrong returns shape () for 2 inputs; it must return features (2, size)",
        ),
        (["--network", "own_parts:Color"], "network own_parts:Color can't be made"),
        (
            ["--network", "own_parts:Slow"],
            "network own_parts:Slow makes Slow; it must make a torch module",
        ),
        (["--network", "own_parts:Net", "--network.depth", "3"], "unknown setting 'network.depth'"),
        (
            ["--strategies", "ewc,own_parts:Slow", "--Slow.factro", "2"],
            "Did you mean 'Slow.factor'?",
        ),
        (
            ["--strategies", "own_parts:Typo"],
            "Typo has a method 'edit_gradient', which is no hook. Did you mean 'edit_gradients'?",
        ),
        (
            ["--strategies", "own_parts:Idle"],
            "Idle overrides no hook of Strategy; define one of check, ",
        ),
    ],
)
def test_a_users_part_that_does_not_fit_is_one_line(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "split-digits", *words]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1
    assert said in errors[0]


def test_the_plants_agent_takes_any_optimizer_too() -> None:
    for algorithm in ("ppo", "sac"):
        experiment = asked(
            "switching-plant",
            "--algorithm",
            algorithm,
            "--optimizer",
            "RMSprop",
            "--optimizer.momentum",
            "0.5",
            "--learning-rate",
            "0.01",
        )
        optimizer = experiment.learner.optimizer
        assert type(optimizer).__name__ == "RMSprop"
        assert (optimizer.defaults["momentum"], optimizer.param_groups[0]["lr"]) == (0.5, 0.01)


def test_a_module_that_is_imported_first_may_register_names(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("my_names.py").write_text(
        "from own_parts import Painted, Slow\nfrom everloop.loop import STRATEGIES\nfrom "
        "everloop.scenarios import SCENARIOS\n"
        "STRATEGIES['slow'] = Slow\nSCENARIOS['painted'] = Painted\n"
    )
    from everloop.scenarios import SCENARIOS

    strategies, scenarios = dict(STRATEGIES), dict(SCENARIOS)
    try:
        assert (
            main(
                [
                    "run",
                    "painted",
                    "--import",
                    "my_names",
                    "--strategies",
                    "slow",
                    "--slow.factor",
                    "0.5",
                    *SHORT,
                    "--quiet",
                    "--out",
                    "a",
                ]
            )
            == 0
        )
        assert yaml.safe_load(Path("a/config.yaml").read_text())["import"] == ["my_names"]
        assert main(["run", "--config", "a/config.yaml", "--quiet", "--out", "b"]) == 0
        assert result_of("a") == result_of("b")
    finally:
        for registry, before in ((STRATEGIES, strategies), (SCENARIOS, scenarios)):
            registry.clear()  # type: ignore[attr-defined]
            registry.update(before)  # type: ignore[attr-defined]
