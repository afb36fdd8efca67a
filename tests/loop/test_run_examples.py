"""What a run shows to strategies and monitors was streamed before, and all of it is counted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from contract_helpers import NETWORKS, STREAM, TASK_AWARE_ONLY, active
from loop_helpers import control_learner, mlp, plant, stream, weights
from run_helpers import FOREVER, TaskRecorder, plan, setting
from torch import Tensor

from everloop.agents import MLP, Classifier
from everloop.contract import Output, Task
from everloop.envs import Examples, ImageStreamVectorEnv
from everloop.loop import (
    AGEM,
    GEM,
    MIR,
    Batch,
    Divergence,
    Evaluation,
    GDumb,
    LaMAML,
    Model,
    PackNet,
    Plan,
    Replay,
    Run,
    Strategy,
    SupervisedLearner,
    Training,
)

ROWS, CLASSES = 120, 6


def numbered(rows: int) -> Examples:
    """Images whose first two pixels are the number of their row."""
    images = np.random.default_rng(0).integers(0, 256, (rows, 8, 8, 1), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 1, 0] = np.arange(rows) // 256, np.arange(rows) % 256
    return Examples(images, np.arange(rows) % CLASSES, tuple("abcdef"))


def numbers(images: Tensor) -> list[int]:
    """The rows of images (T, B, H, W, C)."""
    pixels = images.flatten(0, 1).long()
    return (pixels[:, 0, 0, 0] * 256 + pixels[:, 0, 1, 0]).tolist()


class Numbered(ImageStreamVectorEnv):
    """A stream that records which rows it has shown, and which of them in their own task."""

    def __init__(self, num_envs: int = 8, **parameters: Any) -> None:
        self.shown: set[int] = set()
        super().__init__(num_envs, (numbered(ROWS), numbered(12)), **parameters)

    def _observe(self) -> Any:
        observation = super()._observe()
        self.shown |= set(numbers(torch.from_numpy(observation["image"])[None]))
        return observation


class Watched(Classifier):
    """A network that records the rows it sees."""

    seen: list[int]

    def forward(self, obs: Any, state: Tensor, start: Tensor) -> tuple[Output, Tensor]:
        self.seen = [*getattr(self, "seen", []), *numbers(obs["image"])]
        return super().forward(obs, state, start)


def watched_run(name: str, mixture: dict[str, float], steps: int = 64) -> tuple[Run, Any]:
    """A run of the strategy `name` that never evaluates, and its stream."""
    torch.manual_seed(0)
    task_aware = name in TASK_AWARE_ONLY
    told: dict[str, Any] = (
        {"label_space": "within_task", "task_cue": True}
        if task_aware
        else {"label_space": "global"}
    )
    world = Numbered(mixture=mixture, **told)
    world.reset(seed=0)
    backbone = NETWORKS.get(name, MLP)((8, 8, 1), (12, 12))
    network = Watched(backbone, 2 if task_aware else CLASSES, tasks=3 if task_aware else 1)
    learner = SupervisedLearner(network, world, Training(device="cpu"))
    run = Run(
        learner, Plan([[0], [1], [2]], [steps] * 3, FOREVER), world, [active(name)], [Divergence()]
    )
    return run, world


@pytest.mark.parametrize("name", STREAM)
def test_no_strategy_gets_an_example_before_the_stream_shows_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second pass through the stream would bring examples that it has not shown yet."""
    run, world = watched_run(name, {"blur_ratio": 0.2}, steps=24)

    def unmeasured(run: Run, ends_phase: bool) -> Evaluation:
        phase = run.phase if run.result.evaluations else None
        return Evaluation(run.steps, phase, ends_phase, [0.0] * 3, [0.0] * 3)

    monkeypatch.setattr(Run, "_measure", unmeasured)
    network: Any = run.learner.module
    network.seen = []  # a strategy's check may have used made-up images
    run.begin()
    while not run.done:
        run.advance()
        assert set(network.seen) <= world.shown
    assert len(world.shown) < ROWS


def test_a_task_ends_with_all_its_own_examples_each_once_and_unaltered() -> None:
    """The next task's examples that leaked in are left out."""
    run, world = watched_run("l2", {"blur_ratio": 0.2, "ood_ratio": 0.1}, steps=120)
    images = numbered(ROWS).inputs
    run.begin()
    for task in range(2):
        shown: set[int] = set()
        while run.phase == task:
            before = world.state_dict()["own"]["pending"][0]
            run.advance()
            shown |= set(before.tolist())
        own = {row for row in shown if row % CLASSES // 2 == task}
        batches = run.samples[0][1]
        rows = [row for batch in batches for row in numbers(batch.obs["image"])]
        assert len(rows) == len(set(rows))
        assert set(rows) <= own
        assert len(rows) > 0.8 * len(own)  # some have only been shown altered
        for batch in batches:
            assert np.array_equal(
                batch.obs["image"][0].numpy(), images[numbers(batch.obs["image"])]
            )


def test_consolidation_examples_caps_the_sample() -> None:
    learner, evaluation = setting("stream")
    recorder = TaskRecorder("a", [])
    Run(learner, Plan([[0]], [64], FOREVER, consolidation_examples=5), evaluation, [recorder]).go()
    assert [len(batch) for _, batch in recorder.batches] == [5]


def test_a_boundary_brings_only_what_was_shown_since_the_last_one() -> None:
    run, _ = watched_run("l2", {}, steps=160)
    run.begin()
    while run.steps < 80:
        run.advance()
    run.boundary()
    first = {row for batch in run.samples[0][1] for row in numbers(batch.obs["image"])}
    while run.phase == 0:
        run.advance()
    second = {row for batch in run.samples[0][1] for row in numbers(batch.obs["image"])}
    # one pass has 40 examples, so each part of two passes shows all of them
    assert len(first) == len(second) == 40


def test_a_task_without_a_shown_example_is_an_error() -> None:
    learner, evaluation = setting("stream")
    plain = Plan([[0, 1, 2, 3, 4]], [8], FOREVER)
    run = Run(learner, plain, evaluation, [Ends()])
    with pytest.raises(ValueError, match=r"^no example of task .* was shown .*; train longer"):
        run.go()


class Ends(Strategy):
    """Records the examples at the ends of tasks."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []

    def end_task(self, task: Task, batches: Sequence[Batch], model: Model) -> None:
        self.batches += batches


def test_control_ends_a_task_with_its_own_experience_and_no_further_step() -> None:
    learner = control_learner(world=plant(4, horizon=5))
    observed: list[Tensor] = []

    class Both(Ends):
        def observe(self, batch: Batch, model: Model) -> None:
            observed.append(batch.obs["sensor_0"][0])

    strategy = Both()
    result = Run(learner, Plan([[0]], [64], FOREVER), plant(5), [strategy]).go()
    assert result.steps == 64
    everything = torch.cat(observed).tolist()
    given = torch.cat([batch.obs["sensor_0"][0] for batch in strategy.batches]).tolist()
    assert sorted(given) == sorted(everything)


def test_fresh_rollouts_are_made_only_if_asked_for_and_count_as_steps() -> None:
    """Each of two tasks ends with 8 steps of 4 copies, after 64 steps of training."""
    learner, ends = control_learner(world=plant(4, horizon=5)), Ends()
    the_plan = Plan([[0], [1]], [64, 64], FOREVER, fresh_rollouts=8)
    result = Run(learner, the_plan, plant(5), [ends], rollouts=plant(4)).go()
    assert [len(batch) for batch in ends.batches] == [32, 32]
    assert [now.step for now in result.rows] == [96, 192]


@pytest.mark.parametrize(
    ("kind", "steps", "rollouts", "message"),
    [
        ("stream", 4, True, "fresh_rollouts is 4; a data set would show examples that were not"),
        ("ppo", 4, False, "fresh_rollouts is 4; give the run a copy of the world as rollouts"),
        ("recurrent ppo", 3, True, "fresh_rollouts is 3; it must be a multiple of 4, the length"),
    ],
)
def test_fresh_rollouts_that_cannot_be_made_are_refused(
    kind: str, steps: int, rollouts: bool, message: str
) -> None:
    learner, evaluation = setting(kind)
    the_plan = Plan([[0]], [64], FOREVER, fresh_rollouts=steps)
    with pytest.raises(ValueError, match=message):
        Run(learner, the_plan, evaluation, rollouts=plant(4) if rollouts else None)


def counted(strategies: list[Strategy], training: Training = Training()) -> tuple[int, int]:  # noqa: B008
    told: dict[str, Any] = {"label_space": "within_task", "task_cue": True}
    network = Classifier(MLP((8, 8, 1), (12,)), 2, tasks=5)
    learner = SupervisedLearner(network, stream(**told), training)
    evaluation = stream(16, split="test", **told)
    result = Run(learner, Plan([[0], [1]], [64, 64], FOREVER), evaluation, strategies).go()
    return result.updates, result.presentations


def test_updates_and_presentations_of_streams_are_counted() -> None:
    """Two tasks of 8 batches of 8 examples."""
    assert counted([]) == (16, 128)
    assert counted([], Training(updates_per_batch=3)) == (48, 384)
    assert counted([], Training(accumulate=2)) == (8, 128)


@pytest.mark.parametrize(
    ("strategy", "updates", "presentations"),
    [
        # the second task's 8 updates use 4 examples of the first one
        (Replay(capacity=40, batch_size=4), 0, 8 * 4),
        (AGEM(capacity=40, batch_size=4), 0, 8 * 4),
        (GEM(capacity=40, batch_size=4), 0, 8 * 4),
        # 2 epochs over 40 stored examples in batches of 16 at the end of both tasks
        (GDumb(capacity=40, epochs=2, batch_size=16), 2 * 2 * 3, 2 * 2 * 40),
        (PackNet(retrain_steps=5, batch_size=16), 2 * 5, 2 * 5 * 16),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_what_a_strategy_trains_besides_is_counted(
    strategy: Strategy, updates: int, presentations: int
) -> None:
    assert counted([strategy]) == (16 + updates, 128 + presentations)


def test_look_ahead_steps_are_presentations() -> None:
    """Without memory La-MAML has a gradient of each part of the batch, and one of all of it."""
    la_maml = LaMAML(capacity=1, batch_size=1, parts=2)
    la_maml.draw = lambda model: None  # type: ignore[assignment, method-assign, misc]
    assert counted([la_maml]) == (16, 128 + 16 * (8 + 2 * 8))


def test_mir_counts_the_examples_it_replays() -> None:
    """The first update has stored its own 8 examples."""
    _, presentations = counted([MIR(capacity=40, batch_size=4, candidates=4)])
    assert presentations - 128 in (15 * 4, 16 * 4)


def test_updates_and_presentations_of_control_are_counted() -> None:
    """A rollout of 8 steps of 4 copies is presented twice, in minibatches of 16."""
    learner = control_learner(world=plant(4))
    result = Run(learner, Plan([[0]], [64], FOREVER), plant(5)).go()
    assert (result.updates, result.presentations) == (2 * 2 * 2, 2 * 2 * 32)


def test_online_accuracy_is_that_of_each_batch_before_its_update() -> None:
    learner, evaluation = setting("stream")
    right: list[float] = []

    class Guesses(Strategy):
        def observe(self, batch: Batch, model: Model) -> None:
            assert batch.output is not None
            assert batch.target is not None
            right.extend((batch.output.argmax(-1) == batch.target).flatten().tolist())

    result = Run(learner, plan(), evaluation, [Guesses()]).go()
    assert len(right) == 128
    assert result.online_accuracy == pytest.approx(100 * sum(right) / len(right))
    assert result.online_return is None


def test_online_return_is_that_of_the_episodes_in_training() -> None:
    world = plant(4, horizon=5)
    step, rewards = world.step, list[Any]()

    def recorded(actions: Any) -> Any:
        result = step(actions)
        rewards.append(result[1])
        return result

    world.step = recorded
    result = Run(control_learner(world=world), Plan([[0]], [160], FOREVER), plant(5)).go()
    returns = np.array(rewards).reshape(8, 5, 4).sum(1)
    assert result.online_return == pytest.approx(returns.mean(), rel=1e-6)
    assert result.online_accuracy is None


def joint_passes(world: Any, tasks: list[int]) -> Iterator[list[int]]:
    """Yield the rows of each pass over the union of `tasks`."""
    world.reset(options={"task": tasks})
    length = world.examples(tasks)
    rows: list[int] = []
    while True:
        info = world.step(np.zeros(world.num_envs, int))[-1]
        assert not info["leaked"].any()
        rows += info["index"].tolist()
        if len(rows) >= length:
            yield rows[:length]
            rows = rows[length:]


@pytest.mark.parametrize("copies", [1, 2, 7])
def test_a_joint_pass_is_a_pass_over_the_union_for_any_batch(copies: int) -> None:
    """Tasks of 30, 5 and 1 examples are shown in these shares, from the first batches on."""
    labels = np.repeat([0, 1, 2], [30, 5, 1])
    examples = Examples(np.zeros((36, 4, 4, 1), np.uint8), labels, ("a", "b", "c"))
    world = ImageStreamVectorEnv(
        copies, (examples, examples), {"kind": "classes", "classes_per_task": 1}
    )
    world.reset(seed=0)
    passes = joint_passes(world, [0, 1, 2])
    first, second = next(passes), next(passes)
    assert sorted(first) == sorted(second) == list(range(36))
    assert first != second
    assert sorted(next(joint_passes(world, [2, 1]))) == list(range(30, 36))


def test_joint_training_reports_the_task_of_each_example() -> None:
    world = stream(4, label_space="within_task", task_cue=True)
    obs, info = world.reset(seed=1, options={"task": [0, 3]})
    for _ in range(20):
        assert np.array_equal(obs["cue"].argmax(-1), info["task"])
        shown = info["task"]
        obs, _, _, _, info = world.step(np.zeros(4, int))
        assert np.array_equal(info["origin"], shown)
    assert set(info["task"].tolist()) <= {0, 3}


def test_joint_training_in_small_batches_is_training_on_one_pool() -> None:
    """A run of all tasks in one phase ends at the weights of a loop over the shuffled pool."""
    learner = SupervisedLearner(mlp(), stream(2), Training(1e-2))
    Run(learner, Plan([[0, 1, 2, 3, 4]], [400], FOREVER), stream(16, split="test")).go()
    twin = SupervisedLearner(mlp(), stream(2), Training(1e-2))
    world: Any = stream(2)
    obs, _ = world.reset(options={"task": list(range(5))})
    for _ in range(200):
        image, (obs, _, _, _, info) = obs["image"], world.step(np.zeros(2, int))
        batch = Batch(
            {"image": torch.from_numpy(image)[None]},
            torch.ones(1, 2, dtype=torch.bool),
            torch.from_numpy(info["label"])[None],
        )
        twin.optimizer.zero_grad()
        twin.loss(batch).backward()  # type: ignore[no-untyped-call]
        twin.optimizer.step()
    for ours, theirs in zip(weights(learner.module), weights(twin.module), strict=True):
        torch.testing.assert_close(ours, theirs)
