"""The balanced softmax: its prior, unseen classes, and guesses."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from loop_helpers import mlp, stream
from stub_helpers import Recorder

from everloop.agents import MLP, Classifier
from everloop.envs import SplitClasses
from everloop.loop import SupervisedLearner, Training


def test_before_the_first_labels_the_loss_is_cross_entropy() -> None:
    learner = SupervisedLearner(mlp(), stream(), Training(balanced=True))
    batch = learner.rollout(stream(), [0], 2, 0)
    plain = SupervisedLearner(mlp(), stream())
    assert torch.equal(learner.loss(batch), plain.loss(batch))


def balanced_learner() -> SupervisedLearner:
    """A learner of 3 classes of digits; its first task has two, in unequal numbers."""
    world = stream(8, task_split=SplitClasses(groups=[[0, 1], [2]]))
    torch.manual_seed(0)
    return SupervisedLearner(Classifier(MLP((8, 8, 1), (5,)), 3), world, Training(balanced=True))


def test_the_prior_is_the_frequency_of_the_labels_so_far() -> None:
    learner, recorder = balanced_learner(), Recorder()
    learner.attach([recorder])
    learner.learn([0], 40)
    counts = torch.bincount(
        torch.cat([b.target[0] for b in recorder.observed if b.target is not None]), minlength=3
    ).float()
    assert learner.counts is not None
    assert torch.equal(learner.counts, counts)
    batch = recorder.observed[-1]
    assert batch.target is not None
    logits = learner.outputs(batch)[0]
    p = counts * logits.exp() / (counts * logits.exp()).sum(-1, keepdim=True)
    expected = -p[torch.arange(8), batch.target[0]].log().mean()
    torch.testing.assert_close(learner.loss(batch), expected)
    gradient = torch.autograd.grad(learner.loss(batch), learner.outputs(batch), allow_unused=True)
    assert gradient == (None,), "the loss has a forward pass of its own"


def test_the_weights_of_unseen_classes_do_not_change() -> None:
    learner = balanced_learner()
    head: Any = learner.module.heads.linear  # type: ignore[union-attr]
    before = head.weight.detach().clone()
    learner.learn([0], 40)
    moved = (head.weight.detach() != before).any(1)
    assert moved.tolist() == [True, True, False]


def test_guesses_ignore_the_prior() -> None:
    learner = balanced_learner()
    learner.learn([0], 40)
    obs, _ = learner.world.reset(seed=0)
    logits = learner.module(
        {"image": torch.from_numpy(obs["image"])[None]},
        torch.zeros(8, 0),
        torch.ones(1, 8, dtype=torch.bool),
    )[0].prediction
    np.testing.assert_array_equal(
        learner.act(obs, torch.zeros(8, 0), np.ones(8, np.bool_))[0], logits[0].argmax(-1).numpy()
    )
