"""Options of the supervised learner: their effect, or the note that they have none."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_helpers import distance, mlp, same, stream, weights
from stub_helpers import Recorder
from torch import nn

from everloop.agents import MLP, Classifier, ResNet18
from everloop.loop import Batch, Learner, Replay, SupervisedLearner, Training
from everloop.loop.learners.supervised import LOG_EVERY


def convnet(seed: int = 0) -> Classifier:
    torch.manual_seed(seed)
    return Classifier(ResNet18((8, 8, 1), 8, "group"), 10)


@given(parts=st.integers(1, 5))
@settings(deadline=None, max_examples=5)
def test_accumulated_batches_equal_one_large_batch(parts: int) -> None:
    """The same examples in steps of 4 * parts give the same weights."""
    learners = []
    for copies, accumulate in ((4, parts), (4 * parts, 1)):
        module = mlp()
        learner = SupervisedLearner(
            module,
            stream(copies),
            Training(accumulate=accumulate),
            torch.optim.SGD(module.parameters(), lr=0.5),
        )
        learner.learn([1], 12 * parts)
        learners.append(learner)
    assert distance(weights(learners[0].module), weights(learners[1].module)) < 1e-12
    assert not same(weights(learners[0].module), weights(mlp()))


@given(updates=st.integers(1, 4), rate=st.sampled_from(["constant", "cosine"]))
@settings(deadline=None, max_examples=8)
def test_updates_per_batch_are_steps_on_the_same_batch(updates: int, rate: Any) -> None:
    """The stored output precedes the first update; a cosine rate falls at every update."""
    module, seen = mlp(), Recorder()
    sgd = torch.optim.SGD(module.parameters(), lr=0.5)
    learner = SupervisedLearner(
        module, stream(4), Training(updates_per_batch=updates, rate=rate), sgd
    )
    learner.attach([seen])
    learner.learn([0], 20)
    assert (len(seen.observed), len(seen.rates)) == (5, 5 * updates)
    reference, t = mlp(), 0
    for batch in seen.observed:
        for k in range(updates):
            assert batch.target is not None
            logits = reference(dict(batch.obs), torch.zeros(4, 1), batch.start)[0].prediction[0]
            if k == 0:
                torch.testing.assert_close(logits.detach(), batch.output[0], rtol=0, atol=1e-6)  # type: ignore[index]
            gradients = torch.autograd.grad(
                nn.functional.cross_entropy(logits, batch.target[0]), list(reference.parameters())
            )
            step = (
                0.5 * (1 + math.cos(math.pi * t / (5 * updates))) / 2 if rate == "cosine" else 0.5
            )
            with torch.no_grad():
                for p, g in zip(reference.parameters(), gradients, strict=True):
                    p -= step * g
            t += 1
    assert distance(weights(module), weights(reference)) < 1e-6


def test_each_update_of_a_batch_draws_other_replayed_examples() -> None:
    drawn: list[Batch] = []

    class RecordingReplay(Replay):
        def recall(self, learner: Learner) -> Batch | None:
            stored = super().recall(learner)
            drawn.extend([] if stored is None else [stored])
            return stored

    learner = SupervisedLearner(mlp(), stream(4), Training(updates_per_batch=3))
    learner.attach([RecordingReplay(capacity=40, batch_size=4, current=True)])
    learner.learn([0], 20)
    assert len(drawn) == 3 * 5 - 1  # nothing is stored before the first update
    assert not any(torch.equal(a.obs["image"], b.obs["image"]) for a, b in pairwise(drawn))


def test_the_last_step_of_a_task_takes_the_remaining_batches() -> None:
    """Of 5 batches, the first step takes three and the second takes two."""
    module, seen = mlp(), Recorder()
    learner = SupervisedLearner(
        module, stream(4), Training(accumulate=3), torch.optim.SGD(module.parameters(), lr=0.5)
    )
    learner.attach([seen])
    learner.learn([0], 20)
    assert (len(seen.observed), len(seen.rates)) == (5, 2)
    reference = mlp()
    for batches in (seen.observed[:3], seen.observed[3:]):
        losses = []
        for batch in batches:
            assert batch.target is not None
            logits = reference(batch.obs, torch.zeros(4, 1), batch.start)[0].prediction[0]  # type: ignore[arg-type]
            losses.append(nn.functional.cross_entropy(logits, batch.target[0]))
        gradients = torch.autograd.grad(torch.stack(losses).mean(), list(reference.parameters()))
        with torch.no_grad():
            for p, g in zip(reference.parameters(), gradients, strict=True):
                p -= 0.5 * g
    assert distance(weights(module), weights(reference)) < 1e-12


def test_mixed_precision_computes_in_bfloat16_with_float32_weights() -> None:
    seen: list[torch.dtype] = []
    learners = [
        SupervisedLearner(convnet(), stream(8), Training(precision=precision))
        for precision in ("float32", "bfloat16")
    ]  # type: ignore[arg-type]
    for learner in learners:
        layer = learner.module.backbone.stem[0]  # type: ignore[union-attr,index]
        layer.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
        learner.learn([0], 8)
        assert all(p.dtype == torch.float32 for p in learner.module.parameters())
        assert all(
            p.grad is None or p.grad.dtype == torch.float32 for p in learner.module.parameters()
        )
    assert seen == [torch.float32, torch.bfloat16]
    full, mixed = (
        torch.cat([p.grad.flatten() for p in learner.module.parameters() if p.grad is not None])
        for learner in learners
    )
    assert not torch.equal(full, mixed)
    assert float(nn.functional.cosine_similarity(full, mixed, dim=0)) > 0.99
    batch = learners[1].rollout(stream(8), [0], 2, seed=0)
    assert learners[1].outputs(batch).dtype == torch.float32


def test_channels_last_changes_the_layout_but_not_the_result() -> None:
    nets = [
        SupervisedLearner(convnet(), stream(8), Training(channels_last=last))
        for last in (False, True)
    ]
    kernels = [
        [
            p
            for p in learner.module.parameters()
            if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1
        ]
        for learner in nets
    ]
    assert not any(p.is_contiguous(memory_format=torch.channels_last) for p in kernels[0])
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels[1])
    for learner in nets:
        learner.learn([0], 24)
    assert distance(weights(nets[0].module), weights(nets[1].module)) < 1e-3
    assert nets[1].notes == []


def test_checkpointing_does_not_change_the_weights() -> None:
    nets = [
        SupervisedLearner(convnet(), stream(8), Training(checkpointing=on)) for on in (False, True)
    ]
    assert [learner.module.backbone.checkpointing for learner in nets] == [False, True]  # type: ignore[union-attr]
    for learner in nets:
        learner.learn([0], 24)
    assert same(weights(nets[0].module), weights(nets[1].module))


@pytest.mark.parametrize(
    ("option", "note"),
    [
        ({"channels_last": True}, "channels_last does nothing: the network has no convolutions"),
        (
            {"checkpointing": True},
            "checkpointing does nothing: the network has no layer that can recompute its "
            "activations",
        ),
    ],
)
def test_an_option_without_effect_only_adds_a_note(option: dict[str, Any], note: str) -> None:
    nets = [
        SupervisedLearner(Classifier(MLP((8, 8, 1), (5,)), 10), stream(8), Training(**kwargs))
        for kwargs in ({}, option)
    ]
    nets[1].module.load_state_dict(nets[0].module.state_dict())
    for learner in nets:
        learner.learn([0], 24)
    assert nets[0].notes == []
    assert nets[1].notes == [note]
    assert same(weights(nets[0].module), weights(nets[1].module))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": "linear"}, "^rate is 'linear'; choose one of constant, cosine, plateau, drift"),
        ({"precision": "int8"}, "^precision is 'int8'; choose one of float32, bfloat16"),
        ({"accumulate": 0}, "^accumulate is 0; it must be 1 or more"),
        ({"updates_per_batch": 0}, "^updates_per_batch is 0; it must be 1 or more"),
        (
            {"updates_per_batch": 3, "accumulate": 2},
            "^updates_per_batch is 3 and accumulate is 2; one of them must be 1",
        ),
        ({"augment": "mixup"}, "^augment is 'mixup'; choose one of none, crop_flip"),
        ({"learning_rate": math.inf}, "^learning_rate is inf; it must be finite and above 0"),
    ],
)
def test_invalid_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Training(**options)


@pytest.mark.parametrize("device", ["tpu9", "cuda:99", ""])
def test_an_unavailable_device_is_refused(device: str) -> None:
    with pytest.raises(
        ValueError, match=f"^device is '{device}', which torch can't use on this machine"
    ) as caught:
        SupervisedLearner(mlp(), stream(8), Training(device=device))
    assert "\n" not in str(caught.value)


def test_the_default_device_is_the_accelerator_if_there_is_one() -> None:
    accelerator = (
        torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    )
    expected = "cpu" if accelerator is None else accelerator.type
    assert Training().find_device().type == expected
    assert Training(device="cpu").find_device().type == "cpu"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_losses_on_a_gpu_equal_those_on_a_cpu() -> None:
    losses: list[list[float]] = []
    for device in ("cpu", "cuda"):
        learner = SupervisedLearner(convnet(), stream(8), Training(device=device))
        kept: list[float] = []
        learner.on_log = lambda scalars, kept=kept: kept.append(scalars["train/loss"])  # type: ignore[misc]
        learner.learn([0], LOG_EVERY * 8)
        losses.append(kept)
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_checkpointing_keeps_the_gradient_of_replaced_weights() -> None:
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        learner = SupervisedLearner(
            Classifier(ResNet18((8, 8, 1), 8, "group"), 10),
            stream(),
            Training(checkpointing=checkpointing),
        )
        batch = learner.rollout(stream(), [0], 2, 0)
        others = {
            name: (w.detach() + 0.1).requires_grad_() for name, w in learner.weights().items()
        }
        found.append(torch.autograd.grad(learner.loss(batch, others), list(others.values())))
        assert learner.module.backbone.checkpointing == checkpointing
    assert distance(*found) < 1e-6
