"""Strategies beside each other, and beside the options of training: each does what it does alone,
or is refused.
"""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import pytest
import torch
from architecture_helpers import examples, seen, teach, told
from loop_helpers import distance, mlp, same, stream, vector_batch, weights
from test_strategy_contract import NETWORKS, NOT_TOLD_ONLY, STREAM, TOLD_ONLY, active, train
from torch import Tensor, nn

from everloop.agents import MLP, Classifier, ConvNet5, GrowingMLP, ProgressiveMLP, ResNet18
from everloop.loop import (
    EWC,
    HAT,
    MAML,
    Growth,
    L2Init,
    LaMAML,
    LoRA,
    LwF,
    PackNet,
    Progressive,
    Replay,
    Strategy,
    SupervisedLearner,
    Training,
    attach,
)


def pair_learner(names: tuple[str, str]) -> SupervisedLearner:
    """A small network of the kind that one of the two asks for, told its task if one of them wants
    that.
    """
    cue = bool(TOLD_ONLY & set(names))
    torch.manual_seed(0)
    world = stream(label_space="within_task", task_cue=True) if cue else stream()
    backbone = next((NETWORKS[name] for name in names if name in NETWORKS), MLP)(
        (8, 8, 1), (12, 12)
    )
    return SupervisedLearner(Classifier(backbone, 2 if cue else 10, tasks=5 if cue else 1), world)


@pytest.mark.parametrize("first", STREAM)
def test_any_two_work_together_or_are_refused_in_one_line_before_anything_is_learned(
    first: str,
) -> None:
    for second in STREAM:
        names = first, second
        if (
            first == second
            or set(names) >= set(NETWORKS)
            or (TOLD_ONLY & set(names) and NOT_TOLD_ONLY & set(names))
        ):
            continue
        learner = pair_learner(names)
        strategies = [active(name) for name in names]
        begun = weights(learner.module)
        refusal = ""
        try:
            learner.attach(strategies)
        except ValueError as error:
            refusal = str(error)
        if refusal:
            assert len(refusal.splitlines()) == 1, names
            assert learner.strategies == [], names
            assert same(weights(learner.module), begun), names
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of methods that cannot help here
            try:
                train(learner, strategies, [0, 1, 2], attach=False)
            except Exception as error:
                raise AssertionError(f"{first} and {second}") from error
        assert all(bool(w.isfinite().all()) for w in weights(learner.module)), names


@pytest.mark.parametrize("made", [PackNet, HAT])
def test_what_changes_weights_at_a_tasks_end_comes_first(made: Any) -> None:
    learner = told(MLP((8, 8, 1), (12,)))
    with pytest.raises(
        ValueError,
        match=(
            f"^{made.__name__.lower()} must come first in the list of strategies; it is number 2$"
        ),
    ):
        learner.attach([Replay(), made()])
    learner.attach([made(), Replay()])


@pytest.mark.parametrize("made", [PackNet, lambda: HAT(period=4, rate=0.5)])
def test_a_proximal_step_moves_nothing_that_belongs_to_a_past_task(made: Any) -> None:
    """It comes after the optimizer's, and the weights are put back after that."""
    learner = told(MLP((8, 8, 1), (12,)))
    keeper, ewc = made(), EWC(1e3, proximal=True)
    learner.attach([keeper, ewc])
    teach(learner, [keeper, ewc], 0)
    batch = examples(learner, 0)
    then = seen(learner, keeper, 0, batch)
    for task in (1, 2):
        teach(learner, [keeper, ewc], task)
    assert torch.equal(seen(learner, keeper, 0, batch), then)


def test_one_strategy_in_a_list_adds_weights() -> None:
    learner = told(ProgressiveMLP((8, 8, 1), (12,)))
    with pytest.raises(
        ValueError,
        match=r"^progressive adds weights to the network and lora adds weights to the network, ",
    ):
        learner.attach([Progressive(), LoRA()])
    assert learner.strategies == []


GROWING: dict[str, tuple[Any, Any]] = {
    "lora": (lambda: LoRA(rank=2), MLP),
    "progressive": (Progressive, ProgressiveMLP),
    "growth": (lambda: Growth(units=3, threshold=0.0, patience=2), GrowingMLP),
}


@pytest.mark.parametrize("rate", ["cosine", "plateau"])
@pytest.mark.parametrize("name", GROWING)
def test_weights_that_are_added_follow_the_rate(name: str, rate: Any) -> None:
    strategy, backbone = GROWING[name][0](), GROWING[name][1]((8, 8, 1), (12,))
    learner = SupervisedLearner(
        Classifier(backbone, 2, tasks=5),
        stream(label_space="within_task", task_cue=True),
        Training(1e-2, rate=rate),
    )
    learner.attach([strategy])
    before = len(list(learner.module.parameters()))
    for task in range(2):
        teach(learner, [strategy], task)
    known = {p for group in learner.optimizer.param_groups for p in group["params"]}
    added = list(learner.module.parameters())
    assert len(added) > before
    assert len(learner.optimizer.param_groups) == 1
    assert all(p in known for p in added)


def test_a_schedule_of_torch_goes_on_when_weights_are_added() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    loop = attach([LoRA(rank=2, adapters="online", train_base=False)], module, optimizer)
    loop.begin_task(0)
    x, y = torch.randn(8, 4), torch.randint(3, (8,))
    for _ in range(3):
        loop.observe(x, y)
        nn.functional.cross_entropy(module(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.125]


def pruned(training: Training) -> tuple[float, float]:
    """A task's loss under its view, without retraining and with it."""
    losses = []
    for steps in (0, 200):
        torch.manual_seed(0)
        world = stream(label_space="within_task", task_cue=True)
        learner = SupervisedLearner(Classifier(MLP((8, 8, 1), (12,)), 2, tasks=5), world, training)
        packnet = PackNet(0.05, retrain_steps=steps, batch_size=32)
        learner.attach([packnet])
        teach(learner, [packnet], 0, 640)
        with packnet.view(learner.world.tasks[0], learner), torch.no_grad():
            losses.append(float(learner.loss(examples(learner, 0))))
    return losses[0], losses[1]


@pytest.mark.parametrize("rate", ["constant", "cosine"])
def test_what_was_pruned_is_made_up_for_at_the_full_rate(rate: Any) -> None:
    before, after = pruned(Training(1e-2, rate=rate))
    assert after < 0.1 * before


def test_packnet_claims_the_same_weights_in_any_order_of_storage() -> None:
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


class TagNet(nn.Module):
    """Logits of 3 classes for each of 4 tokens, with a head for each task."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Classifier(_Tokens(), 3, "tokens", tasks=2)

    def initial_state(self, batch: int) -> Tensor:
        return self.network.initial_state(batch)

    def forward(self, *args: Any) -> Any:
        return self.network(*args)


class _Tokens(nn.Module):
    size = 5

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 5)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.layer(x.float()[..., None] / 10)
        return features


def test_packnet_keeps_a_head_of_tags_for_its_task() -> None:
    import numpy as np

    from everloop.envs import ByColumn, Examples, TextStreamVectorEnv

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


def test_with_other_weights_checkpointing_changes_no_gradient() -> None:
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


def test_la_maml_keeps_what_other_strategies_add() -> None:
    """By plain gradient descent the pull of `l2_init` comes on top, whatever the order."""

    def step(*strategies: Strategy) -> list[Tensor]:
        module = mlp()
        learner = SupervisedLearner(
            module, stream(), optimizer=torch.optim.SGD(module.parameters(), lr=0.5)
        )
        learner.attach(strategies)
        for strategy in strategies:
            strategy.begin_task(learner.world.tasks[0], learner)
        with torch.no_grad():
            for p in module.parameters():
                p += 0.1
        learner.learn([0], 8)
        return weights(module)

    def la_maml() -> LaMAML:
        return LaMAML(alpha=0.2)

    alone = step(la_maml())
    pulled = [w - 0.5 * 2 * 0.3 * 0.1 for w in alone]
    assert distance(step(la_maml(), L2Init(0.3)), pulled) < 1e-12
    assert distance(step(L2Init(0.3), la_maml()), pulled) < 1e-12


def test_la_maml_looks_ahead_on_one_batch() -> None:
    with pytest.raises(
        ValueError,
        match=r"^accumulate is 3; it must be 1 for la_maml, which looks ahead",
    ):
        SupervisedLearner(mlp(), stream(), Training(accumulate=3)).attach([LaMAML()])


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_a_foreign_loop_may_accumulate_and_scale_its_loss(scale: float) -> None:
    """Two halves, each loss divided by 2 and scaled, are one batch."""
    x, y = (vector_batch(8, 4, 3).obs["x"][0], vector_batch(8, 4, 3).target)
    assert y is not None
    y = y[0]
    ends = []
    for parts in (1, 2):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
        optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        loop = attach([LwF(2.0)], module, optimizer, accumulate=parts, scaler=scaler)
        for task in range(2):
            loop.begin_task(task)
            for _ in range(3):
                optimizer.zero_grad()
                for a, b in zip(x.chunk(parts), y.chunk(parts), strict=True):
                    loop.observe(a, b)
                    scaler.scale(nn.functional.cross_entropy(module(a), b) / parts).backward()
                scaler.step(optimizer)
                scaler.update()
            loop.end_task([(x, y)])
            x = x.flip(1)
        ends.append(weights(module))
    assert distance(*ends) < 1e-6


def test_a_fused_optimizer_with_scaled_gradients_is_refused() -> None:
    module = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, fused=True)
    scaler = torch.amp.GradScaler("cpu")
    attach([EWC()], module, optimizer, scaler=scaler).begin_task(0)
    scaler.scale(module(torch.ones(2, 3)).sum()).backward()
    then = weights(module)
    with pytest.raises(
        ValueError,
        match=(
            r"^the optimizer is fused and its gradients are scaled; with a GradScaler use "
            r"fused=False$"
        ),
    ):
        scaler.step(optimizer)
    assert same(weights(module), then)


def test_weights_that_a_loop_does_not_train_are_left_alone() -> None:
    module = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    loop = attach([LaMAML()], module, torch.optim.SGD(module[2].parameters(), lr=0.1))
    assert list(loop.weights()) == ["2.weight", "2.bias"]


def test_the_prior_of_a_balanced_softmax_begins_with_the_first_labels() -> None:
    learner = SupervisedLearner(mlp(), stream(), Training(balanced=True))
    batch = learner.rollout(stream(), [0], 2, 0)
    plain = SupervisedLearner(mlp(), stream())
    assert torch.equal(learner.loss(batch), plain.loss(batch))


def test_labels_of_any_integers_become_long() -> None:
    class Small(type(stream())):  # type: ignore[misc]
        def step(self, actions: Any) -> Any:
            *rest, info = super().step(actions)
            return *rest, info | {"label": info["label"].astype("int16")}

    world = Small(8)
    world.reset(seed=0)
    target = SupervisedLearner(mlp(), world).rollout(world, [0], 2, 0).target
    assert target is not None
    assert target.dtype == torch.int64


def test_meta_learning_goes_through_attention_to_the_second_order() -> None:
    """MAML's gradient on an agent against a finite difference along it."""
    from everloop.agents import Agent

    world: Any = stream()

    def made() -> SupervisedLearner:
        torch.manual_seed(0)
        network = Agent(
            world.single_observation_space, 10, recurrent=False, token_size=8, attention_heads=2
        )
        return SupervisedLearner(network, world)

    maml = MAML(inner_lr=0.1, adaptation_steps=2)
    learner = made()
    batches = [learner.rollout(stream(), [0], 1, seed) for seed in range(3)]

    def after(shift: list[Tensor], size: float) -> float:
        twin = made()
        with torch.no_grad():
            for p, s in zip(twin.module.parameters(), shift, strict=True):
                p.add_(s, alpha=size)
        adapted = maml.adapted(
            twin, [partial(twin.loss, batch) for batch in batches[:2]], create_graph=False
        )
        return float(twin.loss(batches[2], adapted).detach())

    found = maml.gradient(learner, [partial(learner.loss, batch) for batch in batches])
    gradient = [
        torch.zeros_like(p) if g is None else g
        for p, g in zip(learner.module.parameters(), found, strict=True)
    ]
    square = float(sum((g**2).sum() for g in gradient))
    size = 1e-3 / square**0.5
    measured = (after(gradient, size) - after(gradient, -size)) / (2 * size)
    assert measured == pytest.approx(square, rel=1e-2)
