"""Options of the supervised learner: each against what it should equal, or a note where it can do
nothing.
"""

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
from loop_helpers import distance, mlp, same, stream, weights
from torch import nn

from everloop.agents import MLP, Classifier, ResNet18
from everloop.envs import SplitClasses
from everloop.loop import Batch, Learner, Replay, Strategy, SupervisedLearner, Training
from everloop.loop.learners.learning_rate import PATIENCE, Cosine, DriftAdaptive, Plateau
from everloop.loop.learners.supervised import LOG_EVERY


def optimizer(lr: float = 0.5) -> torch.optim.Optimizer:
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
    """Keeps the rate, the weights' gradients and the number of steps."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.batches: list[Batch] = []

    def observe(self, batch: Batch, learner: Learner) -> None:
        self.batches.append(batch)

    def after_step(self, learner: Learner) -> None:
        self.rates.append(learner.optimizer.param_groups[0]["lr"])


def test_a_cosine_falls_over_each_task_anew() -> None:
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


def test_a_plateau_halves_the_rate_and_a_task_brings_it_back() -> None:
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


def test_a_drift_brings_the_rate_back_and_a_task_alone_does_not() -> None:
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
        assert jumps <= 3, "a jump of the loss is found within a few averages"


def test_the_learner_tells_the_rate_its_average_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, told, logged = SupervisedLearner(mlp(), stream(8), Training(rate="plateau")), [], []
    monkeypatch.setattr(learner.rate, "average", told.append)
    learner.on_log = logged.append
    learner.learn([0], 2 * LOG_EVERY * 8)
    assert len(told) == 2
    assert [scalars["train/loss"] for scalars in logged] == told
    assert [scalars["train/learning_rate"] for scalars in logged] == [1e-3, 1e-3]


@given(parts=st.integers(1, 5))
@settings(deadline=None, max_examples=5)
def test_accumulated_batches_are_one_batch_of_all_of_them(parts: int) -> None:
    """The same chain of examples, in steps of 4 * parts: the same weights."""
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
def test_several_updates_are_as_many_steps_along_each_batch(updates: int, rate: Any) -> None:
    """The guess, and what is observed, come before the first; the rate falls with every one."""
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


def test_every_update_of_a_batch_rehearses_other_examples() -> None:
    drawn: list[Batch] = []

    class Drawing(Replay):
        def recall(self, learner: Learner) -> Batch | None:
            stored = super().recall(learner)
            drawn.extend([] if stored is None else [stored])
            return stored

    learner = SupervisedLearner(mlp(), stream(4), Training(updates_per_batch=3))
    learner.attach([Drawing(capacity=40, batch_size=4, current=True)])
    learner.learn([0], 20)
    assert len(drawn) == 3 * 5 - 1  # before the first update nothing is stored
    assert not any(torch.equal(a.obs["image"], b.obs["image"]) for a, b in pairwise(drawn))


def test_a_tasks_last_step_takes_what_is_left() -> None:
    """5 batches in threes: a step from three and one from two, and nothing left for the
    next task.
    """
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


def test_mixed_precision_computes_in_bfloat16_and_keeps_weights_and_gradients_in_full() -> None:
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


def test_channels_last_is_how_convolutions_lie_and_changes_no_result() -> None:
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
def test_an_option_that_can_do_nothing_leaves_a_note_and_changes_no_bit(
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
    """On 3 classes of digits, of which it sees two, in unequal numbers."""
    world = stream(8, task_split=SplitClasses(groups=[[0, 1], [2]]))
    torch.manual_seed(0)
    return SupervisedLearner(Classifier(MLP((8, 8, 1), (5,)), 3), world, Training(balanced=True))


def test_a_balanced_softmax_has_the_frequencies_so_far_as_prior() -> None:
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
    assert gradient == (None,), "the loss makes its own forward pass"


def test_a_balanced_softmax_pushes_no_unseen_class_down() -> None:
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
        ({"rate": "linear"}, r"^rate is 'linear', allowed: constant, cosine, plateau, drift"),
        ({"precision": "int8"}, r"^precision is 'int8', allowed: float32, bfloat16"),
        ({"accumulate": 0}, r"^accumulate is 0, allowed: 1 or more"),
        ({"updates_per_batch": 0}, r"^updates_per_batch is 0, allowed: 1 or more"),
        (
            {"updates_per_batch": 3, "accumulate": 2},
            r"^updates_per_batch is 3, allowed with accumulate 2: 1",
        ),
        ({"augment": "mixup"}, r"^augment is 'mixup', allowed: none, crop_flip"),
        ({"learning_rate": math.inf}, r"^learning_rate is inf, allowed: more than 0"),
    ],
)
def test_options_that_cannot_be_are_refused(values: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        Training(**values)


@pytest.mark.parametrize("device", ["tpu9", "cuda:99", ""])
def test_a_device_that_is_not_there_is_refused_by_name(device: str) -> None:
    with pytest.raises(
        ValueError, match=f"^device is '{device}', allowed: one that torch finds on this machine"
    ) as caught:
        SupervisedLearner(mlp(), stream(8), Training(device=device))
    assert "\n" not in str(caught.value)


def test_a_device_is_chosen_by_itself() -> None:
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


def test_river_missing_is_said_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "river.drift", None)
    with pytest.raises(
        ImportError, match=r'needs the package river: pip install "everloop\[drift\]"'
    ):
        SupervisedLearner(mlp(), stream(8), Training(rate="drift"))


def test_plain_gradient_descent_is_the_written_step() -> None:
    world = stream()
    net = Classifier(MLP((8, 8, 1), (6,)), 10)
    learner = SupervisedLearner(net, world, Training(0.3), torch.optim.SGD(net.parameters(), 0.3))
    batch = learner.rollout(stream(), [0], 1, 0)
    before = weights(learner.module)
    gradients = torch.autograd.grad(learner.loss(batch), list(learner.module.parameters()))
    learner.updater.step(learner.loss(batch))
    expected = [w - 0.3 * g for w, g in zip(before, gradients, strict=True)]
    assert distance(weights(learner.module), expected) < 1e-7
