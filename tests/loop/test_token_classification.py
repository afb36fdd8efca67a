"""Token classification: loss, metric, EWC and replay."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from loop_helpers import FixedLearner, FlatNet, perturb, same, weights
from torch import nn

from everloop.agents import Classifier, EmbeddingEncoder
from everloop.contract import Metric, Task
from everloop.envs import ByColumn, Examples, TaskVectorWrapper, TextStreamVectorEnv
from everloop.loop import (
    DER,
    EWC,
    MAS,
    Batch,
    DERPlusPlus,
    Divergence,
    Forward,
    Growth,
    Replay,
    SupervisedLearner,
    TokenCategorical,
    Training,
    diagonal_fisher,
)
from everloop.loop.evaluate import returns, scaled

WORDS, LENGTH = 12, 5


def sentences(seed: int, domains: tuple[str, ...] = ("x", "y"), rows: int = 48) -> Examples:
    """Sentences of the words 1 to 11.

    In domain x, word 4 is a person and word 5 a second name; in domain y these are 6 and 7. All
    other words are outside an entity.
    """
    rng = np.random.default_rng(seed)
    ids = rng.integers(1, WORDS, (rows, LENGTH)).astype(np.int32)
    ids[:, 3] = rng.integers(0, 2, rows) * ids[:, 3]
    ids[ids[:, 3] == 0, 4] = 0  # shorter sentences
    domain = np.array([domains[i % len(domains)] for i in range(rows)])
    first = np.where(domain == "y", 6, 4)[:, None]
    tags = np.where(ids == first, 1, 0)
    tags[:, 1:][(ids[:, 1:] == first + 1) & (tags[:, :-1] == 1)] = 2
    return Examples(
        ids, np.where(ids > 0, tags, -1), ("O", "B-person", "I-person"), {"domain": domain}, WORDS
    )


def make_learner(world: Any, **training: Any) -> SupervisedLearner:
    torch.manual_seed(0)
    net = Classifier(
        EmbeddingEncoder(WORDS, 16, per_token=True), world.single_action_space.nvec[0], "tokens"
    )
    return SupervisedLearner(net, world, Training(**({"learning_rate": 0.01} | training)))


def make_world(split: str = "train", num_envs: int = 8) -> Any:
    world: Any = TextStreamVectorEnv(
        num_envs,
        (sentences(0), sentences(1)),
        task_split=ByColumn("domain"),
        split=split,
        label_space="within_task",
    )
    world.reset(seed=0)
    return world


def test_the_loss_is_the_mean_over_tokens_with_a_tag() -> None:
    learner = FixedLearner(
        FlatNet(nn.Linear(4, LENGTH * 3), "x").double(), TokenCategorical(LENGTH, 3)
    )
    x = torch.randn(1, 2, 4, dtype=torch.float64)
    tags = torch.tensor([[[0, 2, 1, -1, -1], [-1, -1, -1, -1, 2]]])
    batch = Batch({"x": x}, torch.ones(1, 2, dtype=torch.bool), tags)
    log_p = torch.log_softmax(learner.module.layers(x[0]).reshape(2, LENGTH, 3), -1)  # type: ignore[operator]
    tagged = [log_p[0, 0, 0], log_p[0, 1, 2], log_p[0, 2, 1], log_p[1, 4, 2]]
    torch.testing.assert_close(learner.loss(batch), -torch.stack(tagged).mean())
    torch.testing.assert_close(
        learner.log_likelihood(batch), torch.stack([sum(tagged[:3]), tagged[3]])
    )  # type: ignore[list-item]
    nothing = Batch({"x": x}, batch.start, torch.full_like(tags, -1))
    assert learner.loss(nothing).item() == 0


PADDED = torch.tensor([[[0, 2, 1, -1, -1], [1, -1, 0, -1, 2]]])
"""Tags of two sentences; token 3 has none in either."""


def tags_case() -> tuple[FixedLearner, Batch]:
    """A linear tagger and two sentences."""
    torch.manual_seed(0)
    learner = FixedLearner(
        FlatNet(nn.Linear(4, LENGTH * 3), "x").double(), TokenCategorical(LENGTH, 3)
    )
    x = torch.randn(1, 2, 4, dtype=torch.float64)
    return learner, Batch({"x": x}, torch.ones(1, 2, dtype=torch.bool), PADDED)


def test_fisher_information_of_tags_leaves_padding_out() -> None:
    """Of softmax regression it is the mean of ((onehot - p) x')^2 over sentences."""
    learner, batch = tags_case()
    x = batch.obs["x"][0]
    p = torch.softmax(learner.module.layers(x).detach().reshape(2, LENGTH, 3), -1)  # type: ignore[operator]
    drawn = learner.likelihood.sample(
        learner.outputs(batch).detach(), torch.Generator().manual_seed(3)
    )[0]
    error = (nn.functional.one_hot(drawn, 3) - p) * (PADDED[0] >= 0)[..., None]
    expected = (error.flatten(1)[:, :, None] * x[:, None]).square().mean(0)
    found = diagonal_fisher(learner, [batch], torch.Generator().manual_seed(3))
    torch.testing.assert_close(found["layers.weight"], expected)
    assert not found["layers.weight"].reshape(LENGTH, 3, 4)[3].any()


def test_importance_of_mas_for_tags_leaves_padding_out() -> None:
    """Of a linear map it is the mean of |2 z x'| over sentences."""
    learner, batch = tags_case()
    mas, x = MAS(), batch.obs["x"][0]
    mas.end_task(Task(0, "tags"), [batch], learner)
    z = learner.module.layers(x).detach().reshape(2, LENGTH, 3) * (PADDED[0] >= 0)[..., None]  # type: ignore[operator]
    expected = (2 * z.flatten(1)[:, :, None] * x[:, None]).abs().mean(0)
    torch.testing.assert_close(mas.penalty.precision["layers.weight"], expected)


@pytest.mark.parametrize("strategy", [DER, DERPlusPlus])
def test_der_for_tags_is_the_mean_over_tokens_with_a_tag(strategy: Any) -> None:
    learner, batch = tags_case()
    z, output = torch.randn(1, 2, LENGTH * 3, dtype=torch.float64), learner.forward(batch)
    stored = replace(batch, output=z)
    der = strategy(strength=0.7, batch_size=2)
    if strategy is DERPlusPlus:  # the second half of the draw is for the loss of labels
        stored = replace(
            Batch.join([stored, stored]), output=torch.cat([z, torch.zeros_like(z)], 1)
        )
        output, der.label_strength = learner.forward(stored), 0.0
    loss = der.replay_loss(Forward(stored, output), learner)
    errors = (output.prediction[:, :2] - z).reshape(2, LENGTH, 3)[PADDED[0] >= 0]
    torch.testing.assert_close(loss, 0.7 * errors.square().mean())


def test_divergence_of_tags_is_the_mean_over_tokens_with_a_tag() -> None:
    learner, batch = tags_case()
    divergence = Divergence()
    divergence.remember(Task(0, "tags"), learner, batch)
    before = torch.log_softmax(learner.outputs(batch).detach().reshape(2, LENGTH, 3), -1)
    perturb(learner.module, 1)
    after = torch.log_softmax(learner.outputs(batch).detach().reshape(2, LENGTH, 3), -1)
    by_token = (before.exp() * (before - after)).sum(-1)
    expected = by_token[PADDED[0] >= 0].mean()
    found = divergence.update(learner).values["kl/tags/network"]
    assert found == pytest.approx(float(expected))


def test_growth_for_tags_averages_the_loss_over_tokens() -> None:
    learner, batch = tags_case()
    growth = Growth(patience=5)
    growth.observe(batch, learner)
    assert growth.losses == pytest.approx([learner.loss(batch).item()])


def test_training_improves_the_score_of_the_trained_domain() -> None:
    learner, test = make_learner(make_world()), make_world("test", 16)
    before = scaled(test, returns(learner, test, [], seed=0))
    learner.learn([0], 48 * 60)
    after = scaled(test, returns(learner, test, [], seed=0))
    assert before[0] < 30
    assert after[0] > 90
    assert after[1] < after[0], "persons are other words in the other domain"


@pytest.mark.parametrize("wrap", [lambda world: world, TaskVectorWrapper], ids=["plain", "wrapped"])
def test_the_metric_gets_every_example_once(wrap: Any) -> None:
    calls: list[Any] = []
    world = make_world("test", 7)
    world.metric = lambda task: Metric(
        "half", "%", lambda labels, guesses: calls.append((task, labels, guesses)) or 0.5
    )
    test = wrap(world)
    learner = make_learner(make_world())
    assert returns(learner, test, [], seed=0) == [0.5, 0.5]
    assert scaled(test, [0.5, 0.5]) == [50.0, 50.0]
    assert [task for task, _, _ in calls] == [0, 1]
    for task, labels, guesses in calls:
        assert labels.shape == guesses.shape == (24, LENGTH)
        rows = sentences(1).labels[sentences(1).columns["domain"] == "xy"[task]]
        assert sorted(map(tuple, labels.tolist())) == sorted(map(tuple, rows.tolist()))


def test_ewc_and_replay_change_the_result_with_tags() -> None:
    """Replay also improves the score of the first domain."""
    results = {}
    for name, strategies in (
        ("none", []),
        ("ewc", [EWC(1e3)]),
        ("replay", [Replay(capacity=48, batch_size=16)]),
    ):
        train = make_world()
        learner = make_learner(train)
        learner.attach(strategies)
        for task in (0, 1):
            for strategy in strategies:
                strategy.begin_task(train.tasks[task], learner)
            learner.learn([task], 48 * 30)
            for strategy in strategies:
                strategy.end_task(
                    train.tasks[task], [learner.rollout(make_world(), [task], 2, seed=0)], learner
                )
        results[name] = (
            returns(learner, make_world("test", 16), [], seed=0)[0],
            weights(learner.module),
        )
    assert not same(results["none"][1], results["ewc"][1])
    assert results["replay"][0] > results["none"][0] + 0.2


def test_a_balanced_softmax_with_tags_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^balanced is True; it needs one class for each example$"
    ):
        make_learner(make_world(), balanced=True)
