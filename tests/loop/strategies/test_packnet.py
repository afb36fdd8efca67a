"""PackNet: the weights that each task owns, pruning and retraining."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from architecture_helpers import examples, learn_task, task_aware_learner, view_outputs
from loop_helpers import FlatNet, control_learner, plant, stream, vector_batch
from strategy_helpers import Named, Routed, TaskAgnosticLearner
from torch import Tensor, nn

from everloop.agents import MLP, Classifier, ConvNet5
from everloop.envs import ByColumn, Examples, TextStreamVectorEnv
from everloop.loop import (
    Categorical,
    PackNet,
    SupervisedLearner,
    Training,
)


def test_each_task_owns_its_share_of_the_largest_free_weights() -> None:
    learner = task_aware_learner(MLP((8, 8, 1), (16, 16)))
    packnet = PackNet(share=0.25, retrain_steps=0)
    learner.attach([packnet])
    name, free = "backbone.layers.0.weight", 64 * 16
    for task in range(3):
        packnet.begin_task(learner.world.tasks[task], learner)
        learner.learn([task], 64)
        trained = dict(learner.module.named_parameters())[name].detach().clone()
        was_free = (
            packnet.owner[name] == 0
            if packnet.owner
            else torch.ones_like(trained, dtype=torch.bool)
        )
        packnet.end_task(learner.world.tasks[task], [examples(learner, task)], learner)
        mine = packnet.owner[name] == task + 1
        assert int(mine.sum()) == round(0.25 * free)
        assert bool(trained[mine].abs().min() >= trained[was_free & ~mine].abs().max())
        now = dict(learner.module.named_parameters())[name]
        assert not now[was_free & ~mine].any()
        assert torch.equal(now[mine], trained[mine])
        free -= round(0.25 * free)
    heads = packnet.owner["heads.linear.weight"].reshape(5, 2, 16)
    assert [heads[k].unique().tolist() for k in range(5)] == [[1], [2], [3], [0], [0]]
    assert packnet.owner["backbone.layers.0.bias"].unique().tolist() == [1]


def test_packnet_retrains_only_the_tasks_own_weights() -> None:
    learner = task_aware_learner(MLP((8, 8, 1), (16, 16)))
    packnet = PackNet(share=0.5, retrain_steps=20)
    learner.attach([packnet])
    learn_task(learner, 0)
    first = {name: p.detach().clone() for name, p in learner.module.named_parameters()}
    learn_task(learner, 1)
    for name, p in learner.module.named_parameters():
        owner = packnet.owner[name]
        assert torch.equal(p[owner == 1], first[name][owner == 1])
        if p.ndim > 1 and "heads" not in name:
            assert not p[owner == 0].any()
            assert not torch.equal(p[owner == 2], first[name][owner == 2])


def test_a_returning_task_gets_another_share_of_weights() -> None:
    learner = task_aware_learner(MLP((8, 8, 1), (16, 16)), rate=1e-2)
    packnet = PackNet(retrain_steps=10)
    learner.attach([packnet])
    for task in (0, 1):
        learn_task(learner, task, 32)
    batches = [examples(learner, task, seed=77) for task in (0, 1)]
    other = view_outputs(learner, packnet, 1, batches[1])
    packnet.begin_task(learner.world.tasks[0], learner)
    learner.learn([0], 160)
    assert torch.equal(
        view_outputs(learner, packnet, 0, batches[0]), learner.outputs(batches[0]).detach()
    )
    packnet.end_task(learner.world.tasks[0], [examples(learner, 0)], learner)
    assert packnet.tasks.keys == {1: 2, 0: 3}
    assert torch.equal(view_outputs(learner, packnet, 1, batches[1]), other)


def pruned_losses(training: Training) -> tuple[float, float]:
    """A pruned task's loss in its view, without and with retraining."""
    losses = []
    for steps in (0, 200):
        torch.manual_seed(0)
        world = stream(label_space="within_task", task_cue=True)
        learner = SupervisedLearner(Classifier(MLP((8, 8, 1), (12,)), 2, tasks=5), world, training)
        packnet = PackNet(0.05, retrain_steps=steps, batch_size=32)
        learner.attach([packnet])
        learn_task(learner, 0, 640)
        with packnet.view(learner.world.tasks[0], learner), torch.no_grad():
            losses.append(float(learner.loss(examples(learner, 0))))
    return losses[0], losses[1]


@pytest.mark.parametrize("rate", ["constant", "cosine"])
def test_retraining_recovers_the_loss_with_any_rate_schedule(rate: Any) -> None:
    before, after = pruned_losses(Training(1e-2, rate=rate))
    assert after < 0.1 * before


def test_packnet_selects_the_same_weights_in_any_memory_format() -> None:
    owners: list[dict[str, Tensor]] = []
    for channels_last in (False, True):
        torch.manual_seed(0)
        world = stream(label_space="within_task", task_cue=True)
        network = Classifier(ConvNet5((8, 8, 1), (16,)), 2, tasks=5)
        learner = SupervisedLearner(network, world, Training(channels_last=channels_last))
        packnet = PackNet(0.5, retrain_steps=0)
        learner.attach([packnet])
        batch = examples(learner, 0)
        packnet.end_task(learner.world.tasks[0], [batch], learner)
        owners.append(packnet.owner)
        for name, p in learner.weights().items():
            if p.ndim > 1 and "heads" not in name:
                assert (
                    int((p != 0).sum())
                    == int((packnet.owner[name] == 1).sum())
                    == round(0.5 * p.numel())
                )
    assert all(torch.equal(owner, owners[1][name]) for name, owner in owners[0].items())


class TokenFeatures(nn.Module):
    """Five features of each token."""

    size = 5

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 5)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.layer(x.float()[..., None] / 10)
        return features


class TagNet(nn.Module):
    """Logits of 3 classes for each token, with one head per task."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Classifier(TokenFeatures(), 3, "tokens", tasks=2)

    def initial_state(self, batch: int) -> Tensor:
        return self.network.initial_state(batch)

    def forward(self, *args: Any) -> Any:
        return self.network(*args)


def test_a_tagging_head_belongs_to_its_task() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 9, (40, 4)).astype(np.int32)
    data = Examples(
        tokens, rng.integers(0, 3, (40, 4)), ("a", "b", "c"), {"domain": np.arange(40) % 2}
    )
    world = TextStreamVectorEnv(
        4, (data, data), ByColumn("domain"), label_space="within_task", task_cue=True
    )
    world.reset(seed=0)
    torch.manual_seed(0)
    learner, packnet = SupervisedLearner(TagNet(), world), PackNet(0.5, retrain_steps=2)
    learner.attach([packnet])
    for task in range(2):
        packnet.begin_task(world.tasks[task], learner)
        learner.learn([task], 16)
        packnet.end_task(world.tasks[task], [learner.rollout(world, [task], 4, 0)], learner)
    assert packnet.owner["network.heads.linear.bias"].tolist() == [1, 1, 1, 2, 2, 2]


def test_packnet_does_not_prune_a_value_head() -> None:
    """The outputs that it protects do not depend on it."""
    world = plant(task_cue=True)
    learner, packnet = control_learner(world=world), PackNet(0.5, retrain_steps=2)
    learner.attach([packnet])
    value = {name for name in learner.weights() if name.startswith("value")}
    before = {name: learner.weights()[name].detach().clone() for name in value}
    packnet.end_task(world.tasks[0], [learner.rollout(world, [0], 8, seed=0)], learner)
    assert value
    assert all(torch.equal(learner.weights()[name], before[name]) for name in value)
    assert not value & packnet.owner.keys()
    assert packnet.owner["head.linear.weight"].eq(0).any()


def test_packnet_claims_weights_that_only_later_examples_use() -> None:
    """They are searched in all batches, in chunks."""
    learner = TaskAgnosticLearner(FlatNet(Routed(), "x").double(), Categorical(3))
    packnet = PackNet(0.5, retrain_steps=0)
    plain, routed = vector_batch(5, 4, 3), vector_batch(300, 4, 3, seed=1)
    plain.obs["x"].clamp_(max=0.0)
    routed.obs["x"][0, :-1].clamp_(max=0.0)
    routed.obs["x"][0, -1] = 1.0
    packnet.end_task(Named(), [plain, routed], learner)
    assert "layers.routed.weight" in packnet.owner
