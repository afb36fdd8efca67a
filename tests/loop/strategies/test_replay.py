"""Replay: what it stores, which tasks it replays, and its loss."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from loop_helpers import (
    PPO_PARAMETERS,
    agent,
    control_learner,
    digit_learner,
    distance,
    learn_tasks,
    plant,
    rehearsal_loss,
    stream,
    update,
    weights,
)
from rehearsal_helpers import PPO_KINDS, next_draws, perturb_weights
from stable_baselines3 import PPO
from strategy_helpers import after_gradient_step, gaussian_kl
from torch import Tensor, nn

from everloop.envs.data import digits
from everloop.loop import (
    AGEM,
    CLEAR,
    DER,
    GEM,
    MIR,
    Batch,
    DERPlusPlus,
    Learner,
    Replay,
    attach,
)
from everloop.loop.sb3.on_policy import SB3Learner


class ReplayRecorder:
    """Records every batch that `replay` draws."""

    def __init__(self, replay: Replay, monkeypatch: pytest.MonkeyPatch) -> None:
        self.batches: list[Batch] = []
        original = replay.recall

        def recall(learner: Learner) -> Batch | None:
            stored = original(learner)
            self.batches += [] if stored is None else [stored]
            return stored

        monkeypatch.setattr(replay, "recall", recall)

    def tasks(self) -> set[int]:
        return {int(t) for batch in self.batches for t in batch.task}  # type: ignore[union-attr]


def test_only_past_tasks_are_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, replay = digit_learner(), Replay(capacity=200, batch_size=5)
    replayed = ReplayRecorder(replay, monkeypatch)
    learner.attach([replay])
    learn_tasks(learner, [0])
    assert replayed.batches == []
    learner.attach([replay])
    learn_tasks(learner, [1])
    assert replayed.tasks() == {0}
    assert {len(batch) for batch in replayed.batches} == {5}
    assert len(replayed.batches) == 64 / 8  # one draw per update
    learner.attach([replay])
    learn_tasks(learner, [2])
    assert replayed.tasks() == {0, 1}


def test_with_current_the_current_task_is_replayed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, replay = digit_learner(), Replay(capacity=200, batch_size=20, current=True)
    replayed = ReplayRecorder(replay, monkeypatch)
    learner.attach([replay])
    learn_tasks(learner, [0])
    assert replayed.tasks() == {0}
    assert len(replayed.batches) == 64 / 8 - 1  # the first update has nothing to replay
    learn_tasks(learner, [1])
    assert replayed.tasks() == {0, 1}


def test_a_returning_task_is_not_replayed_while_it_is_learned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    learner, replay = digit_learner(), Replay(capacity=200, batch_size=5)
    learner.attach([replay])
    learn_tasks(learner, [0, 1])
    replayed = ReplayRecorder(replay, monkeypatch)
    learner.attach([replay])
    learn_tasks(learner, [0])
    assert replayed.tasks() == {1}
    replayed.batches.clear()
    learner.attach([replay])
    learn_tasks(learner, [2])
    assert replayed.tasks() == {0, 1}


def test_replay_descends_the_fresh_loss_plus_the_weighted_stored_loss() -> None:
    learner, replay = digit_learner(), Replay(strength=0.7, capacity=40, batch_size=6)
    learner.attach([replay])
    learn_tasks(learner, [0])
    learner.learn([1], 8)  # now the reservoir has examples of both tasks
    fresh = learner.rollout(stream(), [2], 1, seed=0)
    (stored,) = next_draws(replay, learner, 6, tasks=[0])
    total = learner.loss(fresh) + 0.7 * learner.loss(stored)
    expected = after_gradient_step(learner.module, total, 0.05)
    update(learner, fresh)
    assert distance(weights(learner.module), expected) < 1e-12


def test_images_are_stored_as_bytes_with_their_labels_and_tasks() -> None:
    learner, replay = digit_learner(), Replay(capacity=30)
    learner.attach([replay])
    learn_tasks(learner, [0, 3])
    images, labels = digits()[0].inputs, digits()[0].labels
    truth = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    items = replay.memory.read(np.arange(len(replay.memory)))
    assert items["obs.image"].dtype == np.uint8
    assert items["obs.image"].shape == (30, 1, 8, 8, 1)
    for image, label, task in zip(items["obs.image"], items["target"], items["task"], strict=True):
        assert truth[image.tobytes()] == int(label[0])
        assert task == int(label[0]) // 2
    assert set(items["task"].tolist()) == {0, 3}


@PPO_KINDS
def test_in_control_the_policy_at_the_tasks_end_is_the_target(recurrent: bool) -> None:
    learner, replay = control_learner(recurrent), Replay(capacity=20, batch_size=4)
    learner.attach([replay])
    learn_tasks(learner, [0])
    stored = Batch.from_items(replay.memory.read(np.arange(len(replay.memory))), learner.device)
    assert stored.target is not None
    assert len(stored) == 20 if not recurrent else len(stored) > 1
    assert stored.length == learner.sequence_length
    torch.testing.assert_close(
        stored.target, learner.outputs(stored).detach(), rtol=1e-5, atol=1e-6
    )
    loss = rehearsal_loss(replay, learner)
    assert loss is not None
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-6)
    parameters = [p for n, p in learner.module.named_parameters() if not n.startswith("value")]
    assert max(float(g.abs().max()) for g in torch.autograd.grad(loss, parameters)) < 1e-4


class DropoutPolicy(nn.Module):
    """A policy with dropout on its outputs."""

    def __init__(self, observation_space: Any, action_space: Any) -> None:
        super().__init__()
        self.policy, self.dropout = agent(observation_space, action_space), nn.Dropout(0.5)

    def initial_state(self, batch: int) -> Tensor:
        return self.policy.initial_state(batch)

    def forward(self, obs: Any, state: Tensor, start: Tensor) -> Any:
        output, state = self.policy(obs, state, start)
        return output._replace(prediction=self.dropout(output.prediction)), state


def dropout_learner() -> SB3Learner:
    return SB3Learner(plant(), DropoutPolicy, PPO, PPO_PARAMETERS, device="cpu")


@pytest.mark.parametrize("kind", [Replay, MIR, AGEM, GEM])
def test_targets_in_control_are_the_final_policys_in_evaluation_mode(
    kind: Any,
) -> None:
    """Not outputs from during the task, and without dropout."""
    learner, strategy = dropout_learner(), kind(capacity=300, batch_size=4)
    learner.attach([strategy])
    learn_tasks(learner, [0, 1])
    for task, now in ((1, True), (0, False)):
        stored = strategy.read(strategy.memory.rows_of(np.array([task])), learner)
        with learner.evaluating():
            outputs = learner.outputs(stored).detach()
        assert len(stored) > 5
        assert (distance([stored.target], [outputs]) < 1e-5) is now
    assert learner.module.training


@pytest.mark.parametrize("kind", [DER, DERPlusPlus, CLEAR])
def test_outputs_stored_during_a_task_are_not_replaced_at_its_end(kind: Any) -> None:
    learner, strategy = control_learner(), kind(capacity=300, batch_size=4)
    learner.attach([strategy])
    strategy.begin_task(learner.world.tasks[0], learner)
    learner.learn([0], 64)
    then = strategy.memory.read(np.arange(len(strategy.memory)))
    strategy.end_task(learner.world.tasks[0], [], learner)
    now = strategy.memory.read(np.arange(len(strategy.memory)))
    assert set(now) == set(then)
    assert all(np.array_equal(now[name], then[name]) for name in now)
    outputs = learner.outputs(strategy.read(np.arange(len(strategy.memory)), learner)).detach()
    assert distance([outputs], [torch.from_numpy(now["target"]).transpose(0, 1)]) > 1e-3


@pytest.mark.parametrize("kind", [Replay, CLEAR])
def test_outputs_are_stored_in_evaluation_mode(kind: Any) -> None:
    learner, strategy = dropout_learner(), kind(capacity=300, batch_size=4)
    batch = learner.rollout(plant(), [0], 8, seed=0)
    learner.module.train()
    strategy.observe(batch, learner)
    with learner.evaluating():
        outputs = learner.outputs(batch).detach()
    assert learner.module.training
    torch.testing.assert_close(strategy.read(np.arange(len(batch)), learner).target, outputs)


@pytest.mark.parametrize(
    "kind",
    [Replay, DERPlusPlus, partial(Replay, memory="uncertain")],
    ids=["replay", "derpp", "uncertain memory"],
)
def test_networks_in_bfloat16_replay_the_examples_they_have_seen(kind: Any) -> None:
    torch.manual_seed(0)
    module = nn.Linear(4, 3).bfloat16()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    replay = kind(capacity=20, batch_size=8)
    loop = attach([replay], module, optimizer)
    for task in range(2):
        loop.begin_task(task)
        x, y = torch.randn(6, 4).bfloat16(), torch.tensor([0, 1, 2, 0, 1, 2])
        loop.observe(x, y)
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(x), y).backward()
        optimizer.step()
        stored = replay.read(np.arange(6 * task, 6 * task + 6), loop)
        assert torch.equal(stored.obs["input"][0], x)
        loop.end_task([(x, y)])
    assert rehearsal_loss(replay, loop) is not None


@PPO_KINDS
def test_replay_in_control_is_the_kl_from_the_stored_policy(recurrent: bool) -> None:
    learner, replay = control_learner(recurrent), Replay(strength=0.7, capacity=20, batch_size=4)
    learner.attach([replay])
    learn_tasks(learner, [0])
    perturb_weights(learner)
    (batch,) = next_draws(replay, learner, 4, tasks=[0])
    loss = rehearsal_loss(replay, learner)

    written = 0.7 * gaussian_kl(batch.target, learner.outputs(batch))
    parameters = [p for n, p in learner.module.named_parameters() if not n.startswith("value")]
    assert loss is not None
    assert float(loss.detach()) > 1e-3
    torch.testing.assert_close(loss, written, rtol=1e-4, atol=1e-6)
    for a, b in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(written, parameters), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


def test_later_tasks_do_not_change_the_targets_of_earlier_ones() -> None:
    learner, replay = control_learner(), Replay(capacity=60, batch_size=4)
    learner.attach([replay])
    learn_tasks(learner, [0])
    items = replay.memory.read(np.arange(len(replay.memory)))
    then = {
        image.tobytes(): target
        for image, target in zip(items["obs.sensor_0"], items["target"], strict=True)
    }
    learner.attach([replay])
    learn_tasks(learner, [1])
    items = replay.memory.read(np.flatnonzero(replay.memory.items["task"] == 0))
    assert len(items["task"]) > 5
    for image, target in zip(items["obs.sensor_0"], items["target"], strict=True):
        np.testing.assert_array_equal(target, then[image.tobytes()])
