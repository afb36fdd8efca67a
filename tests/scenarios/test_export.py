"""Exported networks give what the run's own network gives, for any number of examples."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contract_helpers import active, stream_learner
from loop_helpers import control_learner, off_policy_learner, stream
from run_files import fails
from stable_baselines3 import DQN, PPO, SAC
from torch import Tensor

from everloop.agents import (
    Agent,
    Classifier,
    ConvNet5,
    EmbeddingEncoder,
    NestedConvNet,
    ResNet18,
)
from everloop.envs import make_vec
from everloop.loop import Learner, SupervisedLearner
from everloop.loop.evaluate import viewed
from everloop.scenarios import export as module
from everloop.scenarios.cli import main
from everloop.scenarios.export import _onnx, _sb3, _torch


def agent_learner(**options: Any) -> Learner:
    """The agent with a head for each task, on pictures."""
    world: Any = make_vec("everloop/ImageStream-v0", 4, task_cue=True)
    torch.manual_seed(0)
    agent = Agent(world.single_observation_space, 10, **options)
    return SupervisedLearner(agent, world)


def changed(name: str) -> Learner:
    """A network that a strategy has changed in its first task."""
    learner = stream_learner(name)
    learner.attach([active(name)])
    learner.strategies[0].begin_task(learner.world.tasks[0], learner)
    return learner


def classifier(backbone: Any) -> Learner:
    """A classifier of the digits on a backbone for pictures of 8 x 8 pixels."""
    return SupervisedLearner(Classifier(backbone, 10), stream())


def text_learner() -> Learner:
    """Embeddings of the built-in sentences."""
    world: Any = make_vec("everloop/TextStream-v0", 4)
    ((name, space),) = world.single_observation_space.items()
    torch.manual_seed(0)
    classes = int(world.single_action_space.n)
    network = Classifier(EmbeddingEncoder(space.vocabulary, 16), classes, modality=name)
    return SupervisedLearner(network, world)


LEARNERS: dict[str, Any] = {
    "mlp": stream_learner,
    "agent without memory": lambda: control_learner(False),
    "agent with memory": lambda: control_learner(True),
    "agent on pictures, a head for each task": lambda: agent_learner(head_per_task=True),
    "sac": lambda: off_policy_learner(True),
    "dqn": lambda: off_policy_learner(False),
    "resnet": lambda: classifier(ResNet18((8, 8, 1), width=4)),
    "resnet with group norm": lambda: classifier(ResNet18((8, 8, 1), width=8, norm="group")),
    "convnet": lambda: classifier(ConvNet5((8, 8, 1), (16,))),
    "nested": lambda: classifier(NestedConvNet((8, 8, 1), width=8)),
    "embeddings": text_learner,
    **{
        name: lambda name=name: changed(name)
        for name in ("lora", "growth", "progressive", "packnet", "continual_backprop")
    },
}
QUICK = {"mlp", "agent with memory"}


def given(learner: Learner, rows: int) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Observations, a memory and starts."""
    obs, _ = learner.world.reset(seed=3)
    chosen = np.arange(rows) % learner.world.num_envs
    state = learner.initial_state(rows)
    return (
        {name: torch.as_tensor(x[chosen]) for name, x in obs.items()},
        torch.rand(state.shape),
        torch.rand(rows) > 0.5,
    )


def expected(learner: Learner, arguments: Any) -> list[Tensor]:
    obs, state, start = arguments
    with viewed(learner, learner.strategies, learner.world.tasks[0]), torch.no_grad():
        output, after = learner.module(
            {name: x[None] for name, x in obs.items()}, state, start[None]
        )
    return [
        output.prediction[0],
        after,
        *([] if output.value is None else [output.value[0]]),
    ]


@pytest.mark.parametrize("name", LEARNERS)
def test_a_program_of_torch_gives_the_same(name: str, tmp_path: Path) -> None:
    learner = LEARNERS[name]()
    training = [part.training for part in learner.module.modules()]
    with viewed(learner, learner.strategies, learner.world.tasks[0]), torch.no_grad():
        _torch(learner, tmp_path / "x.pt2")
    assert [part.training for part in learner.module.modules()] == training
    program = torch.export.load(tmp_path / "x.pt2").module()
    for rows in (1, 6):
        arguments = given(learner, rows)
        for ours, theirs in zip(expected(learner, arguments), program(*arguments), strict=True):
            torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)


SLOW_TOO = [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in LEARNERS]


@pytest.mark.parametrize("name", SLOW_TOO)
def test_onnx_gives_the_same_without_a_word(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    learner = LEARNERS[name]()
    disabled = logging.root.manager.disable
    with viewed(learner, learner.strategies, learner.world.tasks[0]), torch.no_grad():
        _onnx(learner, tmp_path / "x.onnx")
    assert logging.root.manager.disable == disabled
    assert capfd.readouterr().out == ""
    session = runtime.InferenceSession(str(tmp_path / "x.onnx"))
    known = {entry.name for entry in session.get_inputs()}
    for rows in (1, 6):
        obs, state, start = given(learner, rows)
        named = {**obs, "memory": state, "start": start}
        found = session.run(None, {key: x.numpy() for key, x in named.items() if key in known})
        for ours, theirs in zip(expected(learner, (obs, state, start)), found, strict=True):
            np.testing.assert_allclose(theirs, ours.numpy(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "algorithm"),
    [
        (lambda: control_learner(False), PPO),
        (lambda: off_policy_learner(True), SAC),
        (lambda: off_policy_learner(False), DQN),
    ],
    ids=["ppo", "sac", "dqn"],
)
def test_stable_baselines3_loads_a_zip_that_acts_the_same(
    make: Any, algorithm: Any, tmp_path: Path
) -> None:
    learner = make()
    learner.learn([0], 64)
    _sb3(learner, tmp_path / "x.zip")
    loaded = algorithm.load(tmp_path / "x.zip", device="cpu")
    for seed in range(5):
        obs, _ = learner.world.reset(seed=seed)
        copies = learner.world.num_envs
        with learner.evaluating():
            ours, _ = learner.act(obs, learner.initial_state(copies), np.ones(copies, bool))
        theirs, _ = loaded.predict(obs, deterministic=True)
        np.testing.assert_allclose(learner.units.to_world(theirs), ours, atol=1e-6)


def test_what_has_no_zip_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the run is of a stream, .* use --format torch or onnx"):
        _sb3(stream_learner(), Path("x.zip"))
    learner = control_learner(True)
    learner.learn([0], 32)
    with pytest.raises(ValueError, match="the run is of RecurrentPPO"):
        _sb3(learner, Path("x.zip"))


class Odd(torch.nn.Module):
    """Its outputs depend on values in a way that no exporter can follow."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def initial_state(self, batch: int) -> Tensor:
        state: Tensor = self.inner.initial_state(batch)
        return state

    def forward(self, obs: Any, state: Tensor, start: Tensor) -> Any:
        if float(next(iter(obs.values())).float().sum()) > 0:
            return self.inner(obs, state, start)
        raise RuntimeError("nothing to see")


def test_a_network_that_can_not_be_exported_is_one_line(tmp_path: Path) -> None:
    learner = stream_learner()
    learner.module = Odd(learner.module)
    with pytest.raises(ValueError, match=r"can't be exported by torch\.export") as error:
        _torch(learner, tmp_path / "x.pt2")
    assert "\n" not in str(error.value)


def test_the_command_writes_whole_files_and_replaces_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["run", "split-digits", "--iterations", "3", "--quiet", "--scenario-type", "task"]
    for name in ("hat", "packnet"):
        assert main([*words, "--strategies", name, "--out", "x", "--overwrite"]) == 0
        assert main(["export", "x", "--task", "0-1"]) == 0
        torch.export.load("x/export.pt2").module()
        Path("x/export.pt2").unlink()
    capsys.readouterr()
    fails(["export", "x"], capsys, "packnet has a network for each task; choose one by --task")
    assert main(["export", "x", "--task", "2-3"]) == 0
    assert capsys.readouterr().out == "written: x/export.pt2\n"
    torch.export.load("x/export.pt2")
    fails(["export", "x", "--task", "2-3"], capsys, "x/export.pt2 exists; give another --out")
    fails(["export", "x", "--task", "7-7", "--overwrite"], capsys, "unknown task '7-7'")
    fails(["export", "x", "--format", "sb3", "--task", "2-3"], capsys, "the run is of a stream")
    fails(["export"], capsys, "no folder is named")
    fails(["export", "nothing"], capsys, "nothing holds no run")

    def full(learner: Learner, file: Path) -> None:
        file.write_text("half")
        raise OSError(28, "No space left on device")

    before = Path("x/export.pt2").read_bytes()
    monkeypatch.setattr(module, "_torch", full)
    fails(["export", "x", "--task", "2-3", "--overwrite"], capsys, "No space left on device")
    assert Path("x/export.pt2").read_bytes() == before
    assert [path.name for path in Path("x").glob("*export*")] == ["export.pt2"]


def test_a_missing_extra_names_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnxscript", None)
    fails(["export", str(tmp_path), "--format", "onnx"], capsys, 'pip install "everloop[onnx]"')
