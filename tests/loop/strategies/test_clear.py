"""CLEAR: cloning of stored policies and values."""

from __future__ import annotations

import torch
from loop_helpers import (
    FlatNet,
    control_learner,
    gradients,
    learn_tasks,
    rehearsal_loss,
)
from rehearsal_helpers import (
    CLASSES,
    INPUTS,
    PPO_KINDS,
    OutputRecorder,
    close,
    examples,
    next_draws,
    perturb_weights,
    stored,
)
from strategy_helpers import TaskAgnosticLearner, gaussian_kl
from torch import nn

from everloop.loop import CLEAR, Categorical


@PPO_KINDS
def test_clear_clones_the_stored_policy_and_value(
    recurrent: bool,
) -> None:
    """strength mean KL(stored || present) + value_strength mean (V - V_stored)^2."""
    learner = control_learner(recurrent)
    recorder = OutputRecorder()
    clear = CLEAR(0.7, 0.3, capacity=100, batch_size=8)
    learner.attach([recorder, clear])
    learn_tasks(learner, [0])
    seen, kept = recorder.by_observation("sensor_0"), stored(clear, learner)
    for i in range(len(kept)):
        prediction, value = seen[kept.obs["sensor_0"][:, i].numpy().tobytes()]
        torch.testing.assert_close(kept.target[:, i], prediction)  # type: ignore[index]
        torch.testing.assert_close(kept.value[:, i], value)  # type: ignore[index]
    perturb_weights(learner)
    (drawn,) = next_draws(clear, learner, 8)
    now = learner.forward(drawn)
    kl = gaussian_kl(drawn.target, now.prediction)
    written = 0.7 * kl + 0.3 * ((now.value - drawn.value) ** 2).mean()  # type: ignore[operator]
    loss = rehearsal_loss(clear, learner)
    torch.testing.assert_close(loss, written, rtol=1e-4, atol=1e-6)
    found = gradients(loss, learner.module)
    assert close(found, gradients(written, learner.module), 1e-3, 1e-5)
    value_head = [
        i
        for i, (name, _) in enumerate(learner.module.named_parameters())
        if name.startswith("value")
    ]
    assert all(found[i].abs().max() > 1e-4 for i in value_head)
    assert not drawn.target.requires_grad  # type: ignore[union-attr]
    assert not drawn.value.requires_grad  # type: ignore[union-attr]


def test_at_value_strength_0_clear_clones_only_the_policy() -> None:
    learner, clear = control_learner(), CLEAR(0.7, 0.0, capacity=100, batch_size=8)
    learner.attach([clear])
    learn_tasks(learner, [0])
    perturb_weights(learner)
    found = gradients(rehearsal_loss(clear, learner), learner.module)
    for (name, _), g in zip(learner.module.named_parameters(), found, strict=True):
        assert not name.startswith("value") or not g.any()


def test_clear_stores_the_policy_in_evaluation_mode() -> None:
    """Without dropout, and without counting the batch in the statistics of batch norm."""
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.BatchNorm1d(INPUTS), nn.Linear(INPUTS, 8), nn.Dropout(0.5), nn.Linear(8, CLASSES)
    ).double()
    learner = TaskAgnosticLearner(FlatNet(layers, "x"), Categorical(CLASSES))
    clear, before = CLEAR(capacity=20), [b.clone() for b in layers.buffers()]
    clear.observe(examples(20), learner)
    kept = stored(clear, learner)
    assert all(torch.equal(b, then) for b, then in zip(layers.buffers(), before, strict=True))
    assert layers.training
    layers.eval()
    torch.testing.assert_close(kept.target[0], layers(kept.obs["x"][0]))  # type: ignore[index]
