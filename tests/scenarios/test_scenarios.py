"""The ready-made scenarios: their worlds, seeds and settings."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from run_files import asked

from everloop.loop import STRATEGIES, Callback, Run, Strategy
from everloop.loop.world import reset_to_tasks
from everloop.scenarios import Experiment, SplitDigits, SwitchingPlant
from everloop.scenarios.cli import main


@pytest.mark.parametrize(
    ("kind", "actions", "cue", "heads"),
    [("class", 10, False, 1), ("domain", 2, False, 1), ("task", 2, True, 5)],
)
def test_scenario_types_differ_in_actions_task_cue_and_heads(
    kind: str, actions: int, cue: bool, heads: int
) -> None:
    learner, plan, evaluation, _ = SplitDigits(scenario_type=kind).build(seed=0)  # type: ignore[arg-type]
    assert evaluation.single_action_space == spaces.Discrete(actions)
    assert isinstance(evaluation.single_observation_space, spaces.Dict)
    assert ("cue" in evaluation.single_observation_space.spaces) is cue
    assert learner.module.head.tasks == heads
    assert [list(phase) for phase in plan.phases] == [[0], [1], [2], [3], [4]]


def test_an_epoch_is_one_pass_over_a_tasks_examples() -> None:
    learner, plan, _, _ = SplitDigits(epochs=3).build(seed=0)
    assert list(plan.steps) == [3 * learner.world.examples(task) for task in range(5)]  # type: ignore[operator]


def test_a_runs_seed_sets_its_plants_and_all_its_worlds_share_them() -> None:
    first, other = (SwitchingPlant(fresh_rollouts=16).build(seed=seed) for seed in (1, 2))
    A = [build[i].unwrapped.A for build in (first, other) for i in (2, 3)]  # type: ignore[union-attr]
    np.testing.assert_array_equal(A[0], A[1])
    assert not np.array_equal(A[0], A[2])
    fixed = [SwitchingPlant(world_seed=7).build(seed=seed)[2].unwrapped.A for seed in (1, 2)]  # type: ignore[attr-defined]
    np.testing.assert_array_equal(fixed[0], fixed[1])


def test_joint_training_in_control_gives_a_task_that_is_named_twice_twice_as_many_copies() -> None:
    scenario = SwitchingPlant(tasks=["0", "1", "0"], num_tasks=2, steps=2048)
    learner, plan, *_ = scenario.build(0, joint=True)
    assert (list(plan.phases[0]), plan.steps) == ([0, 1, 0], [3 * 2048])
    _, played = reset_to_tasks(learner.world, plan.phases[0])
    copies = learner.world.num_envs
    assert abs(int((played == 0).sum()) - 2 * copies / 3) < 1


def test_without_a_cue_the_observation_has_no_task_id() -> None:
    world = SwitchingPlant(task_cue=False).make_world("train", 2, 0)
    assert isinstance(world.single_observation_space, spaces.Dict)
    assert set(world.single_observation_space.spaces) == {"feedback", "sensor_0", "sensor_1"}


def test_initial_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(99)
    first = Experiment(SplitDigits(), seed=4).learner.module.state_dict()
    torch.manual_seed(11)
    second = Experiment(SplitDigits(), seed=4).learner.module.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_python_and_the_command_line_give_the_same_result(tmp_path: Path) -> None:
    experiments = [
        Experiment(SplitDigits(epochs=1), ["ewc", "replay"], seed=3),
        Experiment(SplitDigits(epochs=1), seed=8),
    ]
    result = experiments[0].run()  # another one made in between must not matter
    assert (
        main(
            [
                "run",
                "split-digits",
                "--epochs",
                "1",
                "--strategies",
                "ewc,replay",
                "--seed",
                "3",
                "--out",
                str(tmp_path / "x"),
            ]
        )
        == 0
    )
    assert json.loads((tmp_path / "x" / "result.json").read_text())["scores"] == result.scores


def test_control_runs_do_not_depend_on_other_random_draws() -> None:
    scenario = SwitchingPlant(steps=2048, num_tasks=1, recurrent=False)
    first = Experiment(scenario, seed=2).run()
    second = Experiment(scenario, seed=2)
    Experiment(scenario, seed=9)
    torch.randn(3)
    assert second.run().scores == first.scores


def test_an_experiment_runs_once() -> None:
    experiment = Experiment(SplitDigits(epochs=1, tasks=["0-1"]))
    experiment.run()
    with pytest.raises(RuntimeError, match="already run"):
        experiment.run()


def test_settings_are_complete_and_strategies_without_settings_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Bare(Strategy):
        """Does nothing, and takes nothing."""

    monkeypatch.setitem(STRATEGIES, "bare", Bare)
    experiment = Experiment(
        SplitDigits(), ["bare", "ewc"], seed=5, settings={"ewc": {"strength": 2.0}}
    )
    expected = {
        "strength": 2.0,
        "anchors": "separate",
        "decay": 1.0,
        "fisher": "sampled",
        "proximal": False,
        "examples": 512,
        "seed": 5,
    }
    assert experiment.settings == {"bare": {}, "ewc": expected}
    assert (
        main(
            [
                "run",
                "split-digits",
                "--epochs",
                "1",
                "--tasks",
                "0-1",
                "--strategies",
                "bare",
                "--out",
                str(tmp_path / "x"),
            ]
        )
        == 0
    )


@pytest.mark.parametrize("breaks", [False, True])
def test_the_worlds_of_an_experiment_are_closed_when_it_has_run(
    breaks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment, closed = (
        Experiment(SplitDigits(iterations=1, tasks=["0-1"]), "none"),
        list[Any](),
    )
    worlds = [experiment.learner.world, experiment.evaluation]
    for world in worlds:
        monkeypatch.setattr(world, "close", lambda world=world: closed.append(world))

    class Breaks(Callback):
        def on_step(self, run: Run) -> None:
            if breaks:
                raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more") if breaks else nullcontext():
        experiment.run([Breaks()])
    assert closed == worlds


class PhaseWeights(Callback):
    """Keeps the weights at the end of each phase."""

    def __init__(self) -> None:
        self.ends: list[list[torch.Tensor]] = []

    def on_phase_end(self, run: Run) -> None:
        self.ends.append([p.detach().clone() for p in run.learner.module.parameters()])


PLANT = ["switching-plant", "--num-tasks", "2", "--token-size", "8", "--recurrent", "false"]


@pytest.mark.parametrize(
    ("words", "reset"),
    [
        (["split-digits", "--epochs", "1", "--tasks", "0,1"], "--training.reset_optimizer"),
        ([*PLANT, "--algorithm", "sac", "--steps", "1280"], "--reset_entropy"),
    ],
    ids=["optimizer", "entropy coefficient"],
)
def test_a_run_can_reset_what_a_task_has_left(words: list[str], reset: str) -> None:
    """The first task is the same with and without it, the second is not."""
    (first, second), (first_again, other) = (
        _ends(asked(*words, "--eval-every", "100000", *flag)) for flag in ([], [reset, "true"])
    )
    assert all(torch.equal(a, b) for a, b in zip(first, first_again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(second, other, strict=True))


def _ends(experiment: Experiment) -> list[list[torch.Tensor]]:
    seen = PhaseWeights()
    experiment.run([seen])
    return seen.ends


@pytest.mark.parametrize("algorithm", ["ppo", "sac"])
def test_control_learners_get_the_option_to_reset_optimizers(algorithm: str) -> None:
    words = [*PLANT, "--algorithm", algorithm]
    given = asked(*words, "--reset_optimizer", "true").learner, asked(*words).learner
    assert [learner.reset_optimizer for learner in given] == [True, False]  # type: ignore[attr-defined]


def test_resetting_the_entropy_coefficient_does_nothing_under_ppo() -> None:
    assert SwitchingPlant().without_effect()["reset_entropy"] == "only algorithm sac uses it"
    assert "reset_entropy" not in SwitchingPlant(algorithm="sac").without_effect()
