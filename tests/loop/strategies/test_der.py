"""DER and DER++: stored outputs and losses."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_helpers import (
    FixedLearner,
    FlatNet,
    control_learner,
    digit_learner,
    distance,
    gradients,
    learn_tasks,
    perturb,
    rehearsal_loss,
)
from rehearsal_helpers import (
    CLASSES,
    INPUTS,
    PPO_KINDS,
    OutputRecorder,
    close,
    cross_entropies,
    examples,
    next_draws,
    perturb_weights,
    rehearsal_learner,
    seeds,
    step,
    stored,
    two_layer_outputs,
)
from strategy_helpers import gaussian_kl
from stub_helpers import Recorder
from torch import nn

from everloop.loop import (
    DER,
    Categorical,
    DERPlusPlus,
)


def test_der_stores_outputs_from_before_the_update() -> None:
    """In a stream it stores images as bytes and the outputs of the update's forward pass."""
    learner = digit_learner()
    recorder = OutputRecorder()
    der = DER(capacity=200)
    learner.attach([recorder, der])
    learn_tasks(learner, [0, 1])
    seen, kept = recorder.by_observation("image"), stored(der, learner)
    assert len(kept) == 128
    assert kept.obs["image"].dtype == torch.uint8
    for i in range(len(kept)):
        assert torch.equal(kept.output[:, i], seen[kept.obs["image"][:, i].numpy().tobytes()][0])  # type: ignore[index]
    assert distance([kept.output], [learner.outputs(kept).detach()]) > 0.1  # type: ignore[list-item]


def test_der_stores_the_outputs_of_the_updates_forward_pass() -> None:
    """With dropout, a second forward pass would give other outputs."""
    torch.manual_seed(0)
    der = DER(capacity=6)
    learner = FixedLearner(
        FlatNet(nn.Sequential(nn.Dropout(0.5), nn.Linear(INPUTS, CLASSES)), "x").double(),
        Categorical(CLASSES),
    )
    last = Recorder()
    learner.attach([der, last])
    step(learner, examples(6))
    assert torch.equal(stored(der, learner).output, last.updates[-1].output)  # type: ignore[arg-type]
    assert not torch.equal(
        learner.outputs(stored(der, learner)), learner.outputs(stored(der, learner))
    )


@PPO_KINDS
def test_in_control_der_stores_outputs_from_the_rollout(recurrent: bool) -> None:
    learner = control_learner(recurrent)
    recorder = OutputRecorder()
    der = DER(capacity=300)
    learner.attach([recorder, der])
    learn_tasks(learner, [0])
    seen, kept = recorder.by_observation("sensor_0"), stored(der, learner)
    assert len(kept) == 64 / learner.sequence_length
    for i in range(len(kept)):
        torch.testing.assert_close(
            kept.output[:, i], seen[kept.obs["sensor_0"][:, i].numpy().tobytes()][0]
        )  # type: ignore[index]
    assert distance([kept.output], [learner.outputs(kept).detach()]) > 1e-3  # type: ignore[list-item]


@settings(deadline=None, max_examples=15)
@given(alpha=st.floats(0.1, 3.0), beta=st.floats(0.1, 3.0), plus=st.booleans(), seed=seeds)
def test_the_gradients_of_der_and_derpp_equal_their_formulas(
    alpha: float, beta: float, plus: bool, seed: int
) -> None:
    """alpha mean (z - h(x))^2; DER++ adds beta times the mean cross-entropy of a second draw."""
    der = DERPlusPlus(alpha, beta, 20, 6, seed=seed) if plus else DER(alpha, 20, 6, seed=seed)
    learner = rehearsal_learner([der])
    for i in range(3):
        step(learner, examples(5, seed=seed + i))
        perturb(learner.module, seed + i)
    dark, labelled = next_draws(der, learner, 6, 6)
    h = two_layer_outputs(learner.module, dark.obs["x"][0])
    written = alpha * ((dark.output[0] - h) ** 2).sum() / h.numel()  # type: ignore[index]
    if plus:
        written = (
            written
            + beta
            * cross_entropies(
                two_layer_outputs(learner.module, labelled.obs["x"][0]), labelled.target[0]
            ).mean()
        )  # type: ignore[index]
    loss = rehearsal_loss(der, learner)
    assert close(gradients(loss, learner.module), gradients(written, learner.module))
    assert not torch.equal(dark.obs["x"], labelled.obs["x"])


@PPO_KINDS
def test_in_control_derpp_adds_the_kl_from_the_rollout_policy(
    recurrent: bool,
) -> None:
    learner, der = control_learner(recurrent), DERPlusPlus(0.6, 0.8, capacity=100, batch_size=8)
    learner.attach([der])
    learn_tasks(learner, [0])
    perturb_weights(learner)
    dark, other = next_draws(der, learner, 8, 8)
    assert torch.equal(other.target, other.output)  # type: ignore[arg-type]
    kl = gaussian_kl(other.target, learner.outputs(other))
    written = 0.6 * ((dark.output - learner.outputs(dark)) ** 2).mean() + 0.8 * kl
    loss = rehearsal_loss(der, learner)
    torch.testing.assert_close(loss, written, rtol=1e-4, atol=1e-6)
    assert close(gradients(loss, learner.module), gradients(written, learner.module), 1e-3, 1e-5)
    assert float(kl.detach()) > 1e-4
