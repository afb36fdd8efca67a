"""Replayed examples share one forward pass with the fresh batch, and the update is the same."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from loop_helpers import distance, learn_tasks, mlp, stream, vector_batch, vector_learner, weights
from strategy_helpers import after_gradient_step
from stub_helpers import Recorder
from torch import Tensor, nn

from everloop.agents import MLP, Classifier
from everloop.loop import (
    DER,
    ERACE,
    Batch,
    DERPlusPlus,
    Effect,
    Forward,
    ICaRL,
    Replay,
    Strategy,
    SupervisedLearner,
)

RATE = 0.05
REPLAYING: dict[str, Callable[[], Strategy]] = {
    "replay": lambda: Replay(0.7, capacity=40, batch_size=6, current=True),
    "replay of past tasks": lambda: Replay(0.7, capacity=40, batch_size=6),
    "der": lambda: DER(0.7, capacity=40, batch_size=6),
    "derpp": lambda: DERPlusPlus(0.7, 0.3, capacity=40, batch_size=6),
    "er_ace": lambda: ERACE(0.7, capacity=40, batch_size=6),
    "icarl": lambda: ICaRL(0.7, capacity=40, batch_size=6),
}


def sgd_learner(module: nn.Module | None = None, **world: Any) -> SupervisedLearner:
    module = module or mlp(hidden=12)
    return SupervisedLearner(
        module, stream(**world), optimizer=torch.optim.SGD(module.parameters(), lr=RATE)
    )


@pytest.mark.parametrize("heads", [1, 3], ids=["one head", "one head per task"])
def test_a_joint_pass_gives_the_outputs_of_separate_passes(heads: int) -> None:
    torch.manual_seed(0)
    learner = vector_learner(nn.Linear(3, 4), 4)
    learner.module = Classifier(MLP((1, 1, 3), (6,)), 4, tasks=heads)
    batches = []
    for i, size in enumerate((5, 1, 3)):
        plain = vector_batch(size, 3, 4, seed=i)
        cue = nn.functional.one_hot(torch.arange(size)[None] % 3, 3).float()
        batches.append(
            Batch({"image": plain.obs["x"].reshape(1, size, 1, 1, 3), "cue": cue}, plain.start)
        )
    for batch, together in zip(batches, learner.forward_joined(batches), strict=True):
        alone = learner.forward(batch)
        torch.testing.assert_close(together.prediction, alone.prediction)
        assert together.value is None
        assert (together.heads is None) == (heads == 1)
        if alone.heads is not None:
            torch.testing.assert_close(together.heads, alone.heads)


@pytest.mark.parametrize("name", REPLAYING)
def test_an_update_descends_the_losses_of_separate_passes(name: str) -> None:
    """The task loss plus the strategy's losses of the fresh and the replayed examples.

    The latter are drawn before the fresh batch is stored.
    """
    strategy, learner = REPLAYING[name](), sgd_learner()
    last = Recorder()
    learner.attach([strategy, last])
    learn_tasks(learner, [0], world=stream())
    strategy.begin_task(learner.world.tasks[1], learner)
    learner.learn([1], 8)
    twin, before = copy.deepcopy(strategy), copy.deepcopy(learner.module)
    learner.learn([1], 8)
    fresh = last.updates[-1]
    twin_learner = sgd_learner(before)
    stored = twin.recall(twin_learner)
    assert stored is not None
    assert len(stored) == (12 if name == "derpp" else 6)
    twin.observe(fresh, twin_learner)
    output = twin_learner.forward(fresh)
    own = twin.loss(
        Forward(fresh, output), Forward(stored, twin_learner.forward(stored)), twin_learner
    )
    assert own is not None
    replaced = Effect.REPLACES_LOSS in twin.effects
    total = own if replaced else own + twin_learner.loss_of(output.prediction, fresh.target)  # type: ignore[arg-type]
    expected = after_gradient_step(before, total, RATE)
    assert distance(weights(learner.module), expected) < 1e-12
    assert distance(weights(learner.module), weights(before)) > 1e-4


def test_an_update_is_one_pass_with_several_replay_strategies() -> None:
    learner = sgd_learner()
    learner.attach([Replay(1.0, 40, 6), DER(0.5, 40, 3), ERACE(0.5, 40, 2)])
    learn_tasks(learner, [0], world=stream())
    rows: list[int] = []

    def record(module: nn.Module, inputs: Any, output: Any) -> None:
        rows.append(output[0].prediction.shape[1])

    learner.strategies[0].begin_task(learner.world.tasks[1], learner)
    with learner.module.register_forward_hook(record):
        learner.learn([1], 3 * 8)
    assert rows == [8 + 6 + 3 + 2] * 3


def test_the_world_receives_predictions_for_its_examples_only() -> None:
    learner, guesses = sgd_learner(), list[Tensor]()
    last = Recorder()
    learner.attach([Replay(1.0, 40, 6, current=True), last])
    learn_tasks(learner, [0], world=stream())
    before, step = copy.deepcopy(learner.module), learner.world.step

    def recorded(guess: Any) -> Any:
        guesses.append(torch.as_tensor(guess))
        return step(guess)

    learner.world.step = recorded  # type: ignore[method-assign]
    learner.learn([1], 8)
    assert torch.equal(guesses[0], learner.outputs(last.updates[-1], before).argmax(-1)[0])
