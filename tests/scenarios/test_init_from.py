"""A run can start with the weights of another one."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from loop_helpers import off_policy_learner
from run_files import fails, result_of
from safetensors.torch import load_file, save_file
from test_resume import interrupted

import everloop
from everloop.loop import Result
from everloop.loop.disk import remove
from everloop.scenarios import Experiment, SplitDigits, SwitchingPlant
from everloop.scenarios.cli import main
from everloop.scenarios.status import write_status

PLANT: dict[str, Any] = {"num_tasks": 2, "token_size": 8, "hidden_size": 8, "n_steps": 16}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def digits(out: str | None = None, init_from: Any = None, **settings: Any) -> Experiment:
    scenario = SplitDigits(**{"iterations": 3, **settings})
    return Experiment(scenario, seed=1, out=out, init_from=init_from)


def same(module: torch.nn.Module, file: str) -> bool:
    weights, own = load_file(file), module.state_dict()
    return own.keys() == weights.keys() and all(torch.equal(own[k], weights[k]) for k in own)


def test_the_evaluation_before_the_run_is_the_other_runs_last_one() -> None:
    result = digits("y").run()
    for source in ("y", "y/weights.safetensors", Path("y")):
        following = digits(init_from=source)
        assert same(following.learner.module, "y/weights.safetensors")
        assert following.run().before == result.evaluations[-1].scores
    assert digits().run().before != result.evaluations[-1].scores


@pytest.mark.parametrize(
    "settings", [{"recurrent": False}, {}, {"algorithm": "sac"}], ids=["ppo", "memory", "sac"]
)
def test_policies_of_control_start_with_the_weights_of_another_run(
    settings: dict[str, Any],
) -> None:
    scenario = SwitchingPlant(steps=96, normalize="running", **PLANT, **settings)
    result = Experiment(scenario, seed=1, out="y").run()
    following = Experiment(scenario, seed=1, out="x", init_from="y")
    module = following.learner.module
    assert same(module, "y/weights.safetensors")
    assert ("value.linear" in str(list(module.state_dict()))) == ("algorithm" not in settings)
    counts = [b for name, b in module.named_buffers() if name.endswith("count")]
    assert counts
    assert all(count > 0 for count in counts), "the statistics of inputs came along"
    assert following.run().before == result.evaluations[-1].scores


def test_the_target_network_of_dqn_starts_equal() -> None:
    learner, other = off_policy_learner(seed=0), off_policy_learner(seed=5)
    assert learner.initialise(other.module.state_dict(), "other") == []
    for network in (learner.module, learner.policy.q_net_target.network):
        own = network.state_dict()
        assert all(torch.equal(own[name], w) for name, w in other.module.state_dict().items())


def test_a_larger_head_keeps_its_further_rows() -> None:
    digits("y", scenario_type="domain").run()
    weights, plain = load_file("y/weights.safetensors"), digits().learner
    larger = digits(init_from="y")
    head, untrained = larger.learner.last_layer(), plain.last_layer()
    name = next(n for n, p in larger.learner.module.named_parameters() if p is head.weight)
    old = weights[name]
    assert (len(old), len(head.weight)) == (2, 10)
    assert torch.equal(head.weight[:2], old)
    assert torch.equal(head.weight[2:], untrained.weight[2:])
    assert torch.equal(head.bias[:2], weights[name.replace("weight", "bias")])
    assert torch.equal(head.bias[2:], untrained.bias[2:])
    for other, value in larger.learner.module.state_dict().items():
        if not other.startswith(name.removesuffix("weight")):
            assert torch.equal(value, weights[other])
    note = f"{name} has 10 rows, of which the first 2 come from y"
    assert note in larger.notes
    larger.move_to(Path("x"))
    larger.run()
    with pytest.raises(ValueError, match=rf"^the weights of x don't fit: {name} is \(10, \d+\)"):
        digits(scenario_type="domain", init_from="x")


def test_weights_that_do_not_fit_are_refused_before_training(
    capsys: pytest.CaptureFixture[str],
) -> None:
    digits("y").run()
    words = ["run", "switching-plant", "--out", "x", "--init-from", "y"]
    fails(words, capsys, "the weights of y don't fit: ", "is only here", " more; use the network")
    assert not Path("x").exists()
    Experiment(SwitchingPlant(steps=64, **PLANT), out="z").run()
    words = ["run", "switching-plant", "--num-tasks", "2", "--out", "x", "--init-from", "z"]
    said = "encoders.of_cue.layers.0.weight is (8, 2) there and (64, 2) here, "
    fails(words, capsys, f"the weights of z don't fit: {said}", " more; use the network with")
    assert not Path("x").exists()
    experiment = digits()
    before = {name: w.clone() for name, w in experiment.learner.module.state_dict().items()}
    wrong = {**before, "more": torch.zeros(2)}
    with pytest.raises(ValueError, match=r"^the weights of z don't fit: more \(2,\) is only there"):
        experiment.learner.initialise({name: w + 1 for name, w in wrong.items()}, "z")
    own = experiment.learner.module.state_dict()
    assert all(torch.equal(own[name], w) for name, w in before.items())


def test_a_source_that_can_not_be_read_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    Path("text.safetensors").write_text("none")
    for source, said in (
        ("nowhere", "init_from is nowhere: there is no file nowhere"),
        ("empty", "init_from is empty: empty holds no run: it has no config.yaml"),
        ("text.safetensors", "init_from is text.safetensors: text.safetensors can't be read: "),
    ):
        fails(["run", "split-digits", "--init-from", source, "--out", "x"], capsys, said)
        assert not Path("x").exists()


def test_the_setting_is_part_of_the_run_and_of_its_folder() -> None:
    words = ["run", "split-digits", "--iterations", "3", "--quiet"]
    assert main([*words, "--out", "y"]) == 0
    assert "init_from" not in yaml.safe_load(Path("y/config.yaml").read_text())
    assert main([*words, "--init-from", "y", "--out", "x"]) == 0
    assert yaml.safe_load(Path("x/config.yaml").read_text())["init_from"] == "y"
    assert main(["run", "--config", "x/config.yaml", "--quiet", "--out", "again"]) == 0
    assert result_of("again") == result_of("x")
    assert Result.load("x").before == Result.load("y").evaluations[-1].scores
    assert digits(init_from="y").folder() != digits().folder()


def test_a_resumed_run_does_not_need_the_other_one() -> None:
    words = ["run", "split-digits", "--iterations", "4", "--tasks", "0,1", "--quiet"]
    assert main([*words, "--out", "y"]) == 0
    assert main([*words, "--init-from", "y", "--out", "whole"]) == 0
    with interrupted(3, signal.SIGINT):
        assert main([*words, "--init-from", "y", "--out", "x"]) == 130
    shutil.rmtree("y")
    assert main(["resume", "x", "--quiet"]) == 0
    assert result_of("x") == result_of("whole")
    assert same(everloop.load("whole").module, "x/weights.safetensors")
    assert yaml.safe_load(Path("x/config.yaml").read_text())["init_from"] == "y"


def test_of_a_run_that_was_killed_the_latest_checkpoint_counts() -> None:
    digits("y").run()
    weights = load_file("y/weights.safetensors")
    save_file({name: torch.zeros_like(w) for name, w in weights.items()}, "y/weights.safetensors")
    write_status(Path("y"), "killed")
    own = digits(init_from="y").learner.module.state_dict()
    assert all(torch.equal(own[name], w) for name, w in weights.items())
    remove(Path("y/checkpoints"))
    zero = digits(init_from="y").learner.module.state_dict()
    assert all(not w.any() for w in zero.values())
