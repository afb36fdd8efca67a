"""Options of the supervised learner: what each equals, or the note that it does nothing."""

from __future__ import annotations

import math
import sys
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_helpers import distance, mlp, same, stream, update, weights
from torch import nn

from everloop.agents import MLP, Classifier, ResNet18
from everloop.envs import SplitClasses
from everloop.loop import Batch, Learner, Replay, Strategy, SupervisedLearner, Training
from everloop.loop.learners.learning_rate import PATIENCE, Cosine, DriftAdaptive, Plateau
from everloop.loop.learners.supervised import LOG_EVERY


def optimizer(lr: float = 0.5) -> torch.optim.Optimizer:
    """SGD with two parameter groups, the second one at twice the rate."""
    return torch.optim.SGD(
        [
            {"params": [nn.Parameter(torch.zeros(1))]},
            {"params": [nn.Parameter(torch.zeros(1))], "lr": 2 * lr},
        ],
        lr=lr,
    )


def rates(o: torch.optim.Optimizer) -> list[float]:
    return [group["lr"] for group in o.param_groups]


def convnet(seed: int = 0) -> Classifier:
    torch.manual_seed(seed)
    return Classifier(ResNet18((8, 8, 1), 8, "group"), 10)


class Recorder(Strategy):
    """Records the learning rate of each step, and the observed batches."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.batches: list[Batch] = []

    def observe(self, batch: Batch, learner: Learner) -> None:
        self.batches.append(batch)

    def after_step(self, batch: Batch, learner: Learner) -> None:
        self.rates.append(learner.optimizer.param_groups[0]["lr"])


def test_a_cosine_restarts_with_each_task() -> None:
    o = optimizer()
    rate = Cosine(o)
    for updates in (10, 4):
        rate.begin(updates)
        for t in range(updates):
            rate.next()
            factor = (1 + math.cos(math.pi * t / updates)) / 2
            assert rates(o) == pytest.approx([0.5 * factor, factor], abs=1e-7)


def test_the_learner_follows_the_cosine() -> None:
    learner, seen = SupervisedLearner(mlp(), stream(8), Training(0.1, rate="cosine")), Recorder()
    learner.attach([seen])
    for task in (0, 1):
        learner.learn([task], 40)
    expected = [0.05 * (1 + math.cos(math.pi * t / 5)) for t in range(5)]
    assert seen.rates == pytest.approx(2 * expected, abs=1e-7)


def test_a_plateau_halves_the_rate_and_a_task_restores_it() -> None:
    o = optimizer()
    rate = Plateau(o)
    rate.begin(100)
    for loss in [3.0, 2.0] + [2.5] * PATIENCE:
        rate.average(loss)
        assert rates(o) == [0.5, 1.0]
    rate.average(2.5)
    assert rates(o) == [0.25, 0.5]
    rate.begin(100)
    assert rates(o) == [0.5, 1.0]


def test_a_drift_restores_the_rate_and_a_task_alone_does_not() -> None:
    o = optimizer()
    rate = DriftAdaptive(o)
    for _ in range(4 * PATIENCE):
        rate.average(0.1)
    low = rates(o)[0]
    assert low < 0.2
    rate.begin(100)
    assert rates(o)[0] == low
    jumps = 0
    while rates(o)[0] < 0.5:
        rate.average(2.0)
        jumps += 1
        assert jumps <= 3, "a jump of the loss is detected within a few averages"


def test_the_learner_gives_its_average_losses_to_the_schedule(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    learner, averages, logged = (
        SupervisedLearner(mlp(), stream(8), Training(rate="plateau")),
        [],
        [],
    )
    monkeypatch.setattr(learner.rate, "average", averages.append)
    learner.on_log = logged.append
    learner.learn([0], 2 * LOG_EVERY * 8)
    assert len(averages) == 2
    assert [scalars["train/loss"] for scalars in logged] == averages
    assert [scalars["train/learning_rate"] for scalars in logged] == [1e-3, 1e-3]


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
    """The guess and the observation precede the first update; the rate falls at every update."""
    module, seen = mlp(), Recorder()
    sgd = torch.optim.SGD(module.parameters(), lr=0.5)
    learner = SupervisedLearner(
        module, stream(4), Training(updates_per_batch=updates, rate=rate), sgd
    )
    learner.attach([seen])
    learner.learn([0], 20)
    assert (len(seen.batches), len(seen.rates)) == (5, 5 * updates)
    reference, t = mlp(), 0
    for batch in seen.batches:
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


def test_every_update_of_a_batch_replays_other_examples() -> None:
    drawn: list[Batch] = []

    class Drawing(Replay):
        def recall(self, learner: Learner) -> Batch | None:
            stored = super().recall(learner)
            drawn.extend([] if stored is None else [stored])
            return stored

    learner = SupervisedLearner(mlp(), stream(4), Training(updates_per_batch=3))
    learner.attach([Drawing(capacity=40, batch_size=4, current=True)])
    learner.learn([0], 20)
    assert len(drawn) == 3 * 5 - 1  # nothing is stored before the first update
    assert not any(torch.equal(a.obs["image"], b.obs["image"]) for a, b in pairwise(drawn))


def test_the_last_step_of_a_task_takes_the_remaining_batches() -> None:
    """Of 5 batches in threes, one step takes three and one takes two; none is left over."""
    module, seen = mlp(), Recorder()
    learner = SupervisedLearner(
        module, stream(4), Training(accumulate=3), torch.optim.SGD(module.parameters(), lr=0.5)
    )
    learner.attach([seen])
    learner.learn([0], 20)
    assert (len(seen.batches), len(seen.rates)) == (5, 2)
    reference = mlp()
    for batches in (seen.batches[:3], seen.batches[3:]):
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


def test_mixed_precision_computes_in_bfloat16_and_keeps_float32_weights() -> None:
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


def test_channels_last_changes_the_layout_and_not_the_result() -> None:
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


def test_checkpointing_is_passed_to_the_network_and_changes_no_bit() -> None:
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
def test_an_option_without_effect_leaves_a_note_and_changes_no_bit(
    option: dict[str, Any], note: str
) -> None:
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


def balanced_learner() -> SupervisedLearner:
    """A learner of 3 classes of digits; its first task has two, in unequal numbers."""
    world = stream(8, task_split=SplitClasses(groups=[[0, 1], [2]]))
    torch.manual_seed(0)
    return SupervisedLearner(Classifier(MLP((8, 8, 1), (5,)), 3), world, Training(balanced=True))


def test_the_prior_of_a_balanced_softmax_is_the_frequencies_so_far() -> None:
    learner, seen = balanced_learner(), Recorder()
    learner.attach([seen])
    learner.learn([0], 40)
    counts = torch.bincount(
        torch.cat([b.target[0] for b in seen.batches if b.target is not None]), minlength=3
    ).float()
    assert learner.counts is not None
    assert torch.equal(learner.counts, counts)
    batch = seen.batches[-1]
    assert batch.target is not None
    logits = learner.outputs(batch)[0]
    p = counts * logits.exp() / (counts * logits.exp()).sum(-1, keepdim=True)
    expected = -p[torch.arange(8), batch.target[0]].log().mean()
    torch.testing.assert_close(learner.loss(batch), expected)
    gradient = torch.autograd.grad(learner.loss(batch), learner.outputs(batch), allow_unused=True)
    assert gradient == (None,), "the loss has a forward pass of its own"


def test_a_balanced_softmax_leaves_unseen_classes_alone() -> None:
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


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"rate": "linear"}, r"^rate is 'linear'; choose one of constant, cosine, plateau, drift"),
        ({"precision": "int8"}, r"^precision is 'int8'; choose one of float32, bfloat16"),
        ({"accumulate": 0}, r"^accumulate is 0; it must be 1 or more"),
        ({"updates_per_batch": 0}, r"^updates_per_batch is 0; it must be 1 or more"),
        (
            {"updates_per_batch": 3, "accumulate": 2},
            r"^updates_per_batch is 3 and accumulate is 2; one of them must be 1",
        ),
        ({"augment": "mixup"}, r"^augment is 'mixup'; choose one of none, crop_flip"),
        ({"learning_rate": math.inf}, r"^learning_rate is inf; it must be finite and above 0"),
    ],
)
def test_impossible_options_are_refused(values: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        Training(**values)


@pytest.mark.parametrize("device", ["tpu9", "cuda:99", ""])
def test_an_unavailable_device_is_refused_and_named(device: str) -> None:
    with pytest.raises(
        ValueError, match=f"^device is '{device}', which torch can't use on this machine"
    ) as caught:
        SupervisedLearner(mlp(), stream(8), Training(device=device))
    assert "\n" not in str(caught.value)


def test_auto_takes_an_accelerator_if_there_is_one() -> None:
    accelerator = (
        torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    )
    expected = "cpu" if accelerator is None else accelerator.type
    assert Training().find_device().type == expected
    assert Training(device="cpu").find_device().type == "cpu"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_learns_what_a_cpu_learns() -> None:
    losses: list[list[float]] = []
    for device in ("cpu", "cuda"):
        learner = SupervisedLearner(convnet(), stream(8), Training(device=device))
        kept: list[float] = []
        learner.on_log = lambda scalars, kept=kept: kept.append(scalars["train/loss"])  # type: ignore[misc]
        learner.learn([0], LOG_EVERY * 8)
        losses.append(kept)
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_the_error_names_the_extra_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "river.drift", None)
    with pytest.raises(
        ImportError, match=r'needs the package river: pip install "everloop\[drift\]"'
    ):
        SupervisedLearner(mlp(), stream(8), Training(rate="drift"))


def test_a_step_of_sgd_is_the_gradient_times_the_rate() -> None:
    world = stream()
    net = Classifier(MLP((8, 8, 1), (6,)), 10)
    learner = SupervisedLearner(net, world, Training(0.3), torch.optim.SGD(net.parameters(), 0.3))
    batch = learner.rollout(stream(), [0], 1, 0)
    before = weights(learner.module)
    gradients = torch.autograd.grad(learner.loss(batch), list(learner.module.parameters()))
    update(learner, batch)
    expected = [w - 0.3 * g for w, g in zip(before, gradients, strict=True)]
    assert distance(weights(learner.module), expected) < 1e-7
