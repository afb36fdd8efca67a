"""Every stream runs in every scenario type, on small data in the layout of the real data."""

import contextlib
import json
import os
import pty
import subprocess
import sys
import termios
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from everloop.agents import ContinuumMemory, NestedConvNet
from everloop.loop import NestedOptimizer
from everloop.scenarios import SCENARIOS, Experiment, SplitCIFAR10, SplitDigits, SplitMNIST
from everloop.scenarios.arguments import build, read
from everloop.scenarios.cli import main
from everloop.scenarios.mnist import PermutedMNIST

pytestmark = pytest.mark.usefixtures("surroundings")

QUICK = ["--epochs", "1", "--batch-size", "8", "--eval-every", "100000"]


def extra(name: str, data: Path) -> list[str]:
    """Return the settings that a stream needs for the small data."""
    return {
        "split-imagenet256": ["--data", str(data / "imagenet"), "--side", "8", "--width", "4"],
        "domain-text": ["--folders", f"[{data}/own/news,{data}/own/social]"],
        "split-cifar10": ["--width", "4"],
        "split-cifar100": ["--architecture", "mlp", "--width", "8"],
        "domain-ner": ["--length", "8"],
        "split-omniglot": ["--width", "16"],
        "features": ["--data", f"{data}/flowers.csv", "--domain", "site"],
    }.get(name, [])


STREAMS = [n for n in SCENARIOS if n not in ("switching-plant", "control", "split-digits")]


def usual(name: str) -> str:
    """Return the scenario type in which a stream is usually run."""
    if name.startswith(("domain", "permuted", "rotated")):
        return "domain"
    return "task" if name == "split-cifar100" else "class"


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, usual(name)) for name in STREAMS]
    + [("split-mnist", "task"), ("split-mnist", "domain")]
    + [("domain-ner", "task"), ("domain-ner", "class")],
)
def test_every_stream_runs(name: str, kind: str, data: Path) -> None:
    words = [
        "run",
        name,
        *QUICK,
        "--scenario-type",
        kind,
        "--preset",
        "moderate",
        "--strategies",
        "none",
        *extra(name, data),
    ]
    assert main([*words, "--out", "x"]) == 0
    result = json.loads(Path("x", "result.json").read_text())
    scores = np.array(result["scores"], dtype=float)
    seen = np.tril(np.ones_like(scores, dtype=bool))
    assert len(result["tasks"]) == len(scores) > 1
    assert np.isfinite(scores[seen]).all()
    assert np.isnan(scores[~seen]).all(), "tasks not yet seen are not measured"
    assert result["anytime_score"] is not None


@pytest.mark.parametrize(("name", "noted"), [("domain-sentiment", True), ("split-mnist", False)])
def test_class_incremental_learning_of_the_same_classes_is_noted(
    name: str, noted: bool, data: Path
) -> None:
    made: Any = SCENARIOS[name]
    for kind in ("class", "domain"):
        notes = made(scenario_type=kind).build(0)[0].notes
        said = any("scenario_type class is the same as domain" in note for note in notes)
        assert said == (noted and kind == "class")


@pytest.mark.parametrize(
    ("name", "tasks", "classes"),
    [
        ("split-mnist", ["c000-c001", "c002-c003", "c004-c005", "c006-c007", "c008-c009"], 2),
        ("permuted-mnist", [f"permutation-{k}" for k in range(10)], 10),
        ("rotated-mnist", [f"rotation-{k}" for k in range(10)], 10),
        ("split-cifar100", [f"c0{k}0-to-c0{k}9" for k in range(10)], 10),
        ("split-omniglot", ["Greek", "Latin", "Thai"], 2),
        ("split-imagenet256", ["n00-to-n09", "n10-to-n19"], 10),
        ("domain-sentiment", ["books", "dvd"], 2),
        ("domain-newsgroups", ["alt", "comp", "sci"], 3),
        ("domain-text", ["news", "social"], 2),
    ],
)
def test_the_number_of_classes_depends_on_the_scenario_type(
    name: str, tasks: list[str], classes: int, data: Path
) -> None:
    """Class-incremental learning has the classes of all tasks, the other types those of one.

    Domains of the same classes have only these.
    """
    options = {"data": str(data / "imagenet"), "side": 8} if name == "split-imagenet256" else {}
    if name == "domain-text":
        options = {"folders": [str(data / "own" / "news"), str(data / "own" / "social")]}
    made: Any = SCENARIOS[name]
    worlds = {
        kind: made(scenario_type=kind, **options).make_world("train", 1, 0)
        for kind in ("class", "domain", "task")
    }
    assert [task.name for task in worlds["class"].tasks] == tasks
    assert worlds["domain"].single_action_space.n == worlds["task"].single_action_space.n == classes
    alike = {"domain-newsgroups": 5, "domain-sentiment": 2, "domain-text": 2}
    together = alike.get(name, classes * len(tasks))
    assert worlds["class"].single_action_space.n == together
    assert ["cue" in worlds[kind].single_observation_space.spaces for kind in worlds] == [
        False,
        False,
        True,
    ]


def test_permuted_mnist_trains_on_a_draw_of_examples(data: Path) -> None:
    made = PermutedMNIST(num_tasks=2, examples_per_task=7)
    assert made.make_world("train", 1, 0).examples([0, 1]) == 14
    assert "same_examples" not in made.without_effect()
    assert PermutedMNIST().without_effect()["same_examples"] == "examples_per_task is not set"


def test_the_value_of_white_pixels_reaches_the_network(data: Path) -> None:
    made = PermutedMNIST(white=255.0)
    assert made.make_learner(made.make_world("train", 1, 0), 0).module.backbone.white == 255  # type: ignore[union-attr]
    assert "white" not in made.without_effect()
    convolutions = PermutedMNIST(white=255.0, architecture="convnet")
    assert convolutions.without_effect()["white"] == "it is only for architecture mlp"


def test_presets_and_single_ratios_reach_the_stream() -> None:
    for preset, ratios in {
        "easy": (0, 0, 0),
        "moderate": (0.1, 0.05, 0.05),
        "hard": (0.2, 0.1, 0.1),
    }.items():
        mixture = SplitDigits(preset=preset).mixture(None)  # type: ignore[arg-type]
        assert (mixture.blur_ratio, mixture.other_task_ratio, mixture.ood_ratio) == ratios
    mixture = SplitDigits(preset="hard", ood_ratio=0.0, gradual=0.5).mixture([1, 0])
    assert (mixture.blur_ratio, mixture.ood_ratio, mixture.gradual, mixture.order) == (
        0.2,
        0.0,
        0.5,
        [1, 0],
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"blur_ratio": 0.2, "other_task_ratio": 0.2, "epochs": 2},
        {"gradual": 0.4, "epochs": 2},
        {"gradual": 1.0},
    ],
)
def test_a_phase_of_a_task_that_returns_is_its_visit(settings: dict[str, Any]) -> None:
    """Its steps are whole passes, with examples of the tasks before and after this phase."""
    scenario = SplitDigits(tasks=["0-1", "2-3", "0-1", "4-5"], batch_size=1, **settings)
    learner, plan, *_ = scenario.build(0)
    world: Any = learner.world
    neighbours = [{1}, {0}, {1, 2}, {0, 1}]
    for phase, (task, steps) in enumerate(zip([0, 1, 0, 2], plan.steps, strict=True)):
        world.reset(options={"task": task})
        seen = [world.step(np.zeros(1, int))[4] for _ in range(steps)]
        origins = [int(info["origin"][0]) for info in seen]
        foreign = set(origins) - {task}
        assert neighbours[phase] >= foreign > set(), phase
        own = Counter(
            (int(info["epoch"][0]), int(info["index"][0]))
            for info in seen
            if info["origin"][0] == task
        )
        assert set(own.values()) == {1}
        assert len(own) == scenario.epochs * sum(scenario.loaded[0].labels // 2 == task)


@pytest.mark.parametrize(
    ("name", "groups", "tasks"),
    [
        ("split-digits", "[[0,1,2,3],[9],[6,5]]", ["0-1-2-3", "9", "6-5"]),
        ("split-mnist", "[[3,c001],[c000,2]]", ["c003-c001", "c000-c002"]),
    ],
)
def test_groups_of_classes_are_tasks(name: str, groups: str, tasks: list[str]) -> None:
    request = read([name, "--groups", groups])
    world = build(request.scenario, request.values, request.given).make_world("train", 4, 0)
    assert [task.name for task in world.tasks] == tasks


def test_groups_exclude_i_blurry_and_replace_equal_groups() -> None:
    grouped = SplitMNIST(groups=[["0", "1"], ["2"]])
    assert {"classes_per_task", "class_seed"} <= set(grouped.without_effect())
    with pytest.raises(
        ValueError,
        match=(
            r"^groups is set and disjoint_ratio is 0\.5; i-Blurry makes its own groups, so leave "
            "one of them out$"
        ),
    ):
        SplitMNIST(groups=[["0", "1"]], disjoint_ratio=0.5).task_split()


def test_visits_that_iterations_do_not_tell_are_refused() -> None:
    again = ["0-1", "2-3", "0-1"]
    SplitDigits(tasks=again, iterations=5, ood_ratio=0.1).build(0)
    with pytest.raises(
        ValueError,
        match=(
            r"^other_task_ratio is 0\.1 and tasks holds a task several times, whose visits are "
            "counted by whole passes; give epochs in place of iterations$"
        ),
    ):
        SplitDigits(tasks=again, iterations=5, other_task_ratio=0.1).build(0)


def test_a_stream_knows_the_order_of_the_chosen_tasks() -> None:
    """Blurred examples come from the next task in that order, not in the world's order."""
    world: Any = SplitDigits(blur_ratio=0.3, tasks=["6-7", "0-1"]).make_world("train", 50, 0)
    world.reset(seed=0, options={"task": "6-7"})
    info = world.step(np.zeros(50, int))[4]
    assert set(info["origin"][info["leaked"]]) == {0}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["split-mnist", "--data", "nowhere/at-all/none"], "nowhere/at-all/none"),
        (["split-mnist", "--preset", "extreme"], "preset"),
        (["split-mnist", "--scenario-type", "instance"], "scenario_type"),
        (["split-mnist", "--blur-ratio", "1.5"], "blur_ratio is 1.5; it must be from 0 to 1"),
        (
            ["split-mnist", "--blur-ratio", "0.6", "--ood-ratio", "0.4"],
            "blur_ratio + other_task_ratio + ood_ratio is 1; it must be less than 1",
        ),
        (
            ["split-mnist", "--classes-per-task", "3"],
            "classes_per_task is 3; it must divide the number of classes, 10",
        ),
        (
            ["split-mnist", "--disjoint-ratio", "0.5", "--scenario-type", "task"],
            "disjoint_ratio is 0.5",
        ),
        (["split-mnist", "--epochs", "0"], "epochs is 0; it must be 1 or more"),
        (["split-mnist", "--width", "0"], "each layer needs 1 or more units"),
        (["split-mnist", "--periods", "[0]"], "a level's period is 0; it must be 1 or more"),
        (["split-mnist", "--architecture", "transformer"], "architecture"),
        (["split-mnist", "--training.learning-rate", "-1"], "learning_rate is -1"),
        (["split-mnist", "--training.device", "cuda:99"], "device is 'cuda:99'"),
        (["split-mnist", "--pretrain", "/nowhere", "--architecture", "convnet"], "/nowhere"),
        (["split-omniglot", "--alphabets", "9"], "alphabets is 9; it must be 1 to 3"),
        (["rotated-mnist", "--num-tasks", "0"], "num_tasks is 0; it must be 1 or more"),
        (["domain-sentiment", "--checkpoint", "/nowhere"], "/nowhere"),
        (["domain-sentiment", "--length", "0"], "length is 0; it must be 1 or more"),
        (["domain-text"], "folders is empty"),
        (["split-imagenet256", "--data", "missing"], "missing"),
    ],
)
def test_a_mistake_ends_in_one_line(
    words: list[str], line: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["run", *words, "--strategies", "none"]) == 2
    printed = capsys.readouterr().err.strip().splitlines()
    assert [said for said in printed if said.startswith("everloop: error:")] == printed[
        -1:
    ]  # after what prepared the data, if it was new
    assert line in printed[-1]
    assert not list(tmp_path.iterdir())


def test_without_the_data_a_stream_says_where_it_looks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("EVERLOOP_DATA", str(tmp_path))
    assert main(["run", "split-mnist", "--strategies", "none"]) == 2
    said = capsys.readouterr().err
    assert (
        "split-mnist needs a data set: put a folder 'mnist' into EVERLOOP_DATA, which is "
        f"{tmp_path}, or give another one with --data" in said
    )
    monkeypatch.delenv("EVERLOOP_DATA")
    assert main(["run", "domain-ner", "--strategies", "none"]) == 2
    said = capsys.readouterr().err
    assert (
        "domain-ner needs a data set: put a folder 'crossner' into EVERLOOP_DATA, or give another "
        "one with --data" in said
    )


@pytest.mark.parametrize(
    ("words", "terminal", "shown"),
    [
        pytest.param([], True, True, id="terminal"),
        pytest.param(["--quiet"], True, False, id="quiet terminal", marks=pytest.mark.slow),
        pytest.param([], False, False, id="pipe", marks=pytest.mark.slow),
    ],
)
def test_loading_data_shows_bars_only_in_a_terminal_and_never_with_quiet(
    words: list[str], terminal: bool, shown: bool, tmp_path: Path
) -> None:
    """The run is refused after its data is loaded, so that it is short."""
    refused = ["run", "split-mnist", "--strategies", "packnet", *words]
    env = {**os.environ, "EVERLOOP_CACHE": str(tmp_path / "cache"), "TERM": "xterm"}
    env.pop("HF_DATASETS_DISABLE_PROGRESS_BARS", None)
    ours, theirs = pty.openpty() if terminal else os.pipe()
    if terminal:
        termios.tcsetwinsize(theirs, (24, 80))
    command = [sys.executable, "-m", "everloop", *refused]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs, env=env)
    os.close(theirs)
    said = b""
    with contextlib.suppress(OSError):  # a terminal ends with an error
        while part := os.read(ours, 4096):
            said += part
    os.close(ours)
    assert process.wait() == 2
    assert b"everloop: error: packnet" in said
    assert (b"Generating train split" in said) == shown
    assert shown or said.count(b"\n") == 1


def test_an_unreachable_hub_is_one_line_with_the_alternatives(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("datasets")
    monkeypatch.delenv("EVERLOOP_DATA", raising=False)
    monkeypatch.setattr("everloop.envs.data.hub.hub_answers", lambda: False)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    assert main(["run", "split-mnist"]) == 2
    assert capsys.readouterr().err == (
        "everloop: error: data set ylecun/mnist can't be reached, and is not stored here; "
        "put it into a folder 'mnist' in EVERLOOP_DATA, give --data FOLDER, or go online once\n"
    )


def test_the_list_says_what_each_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    listed = " ".join(capsys.readouterr().out.split())
    for name in STREAMS:
        assert name in listed
    for needed in (
        'folder "cifar100" in EVERLOOP_DATA',
        "Kaggle credentials",
        "--folders news,social,academic",
    ):
        assert needed in listed


def test_options_that_do_nothing_are_noted(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(
            [
                "run",
                "split-mnist",
                *QUICK,
                "--training.channels-last",
                "true",
                "--width",
                "8",
                "--strategies",
                "none",
            ]
        )
        == 0
    )
    assert (
        "note: channels_last does nothing: the network has no convolutions"
        in capsys.readouterr().out
    )


def test_periods_make_levels_of_depth_or_of_memories() -> None:
    plain: Any = Experiment(
        SplitCIFAR10(architecture="mlp", width=8, periods=[1, 5]), ["none"]
    ).learner
    assert isinstance(plain.optimizer, NestedOptimizer)
    assert list(plain.optimizer.slow) == [5]
    nested: Any = Experiment(
        SplitCIFAR10(architecture="nested", width=4, periods=[1, 3, 9]), ["none"]
    ).learner
    assert sorted(nested.optimizer.slow) == [3, 9]
    memories = [m for m in nested.module.modules() if isinstance(m, ContinuumMemory)]
    assert len(memories) == 5
    slow = {id(p) for level in nested.optimizer.slow.values() for p in level}
    assert slow == {id(p) for m in memories for block in m.blocks[1:] for p in block.parameters()}
    without: Any = Experiment(SplitCIFAR10(architecture="nested", width=4), ["none"]).learner
    assert isinstance(without.module.backbone, NestedConvNet)
    assert not isinstance(without.optimizer, NestedOptimizer)
