"""iCaRL: herding, the nearest mean of exemplars, and its losses."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from loop_helpers import (
    digit_learner,
    distance,
    mlp,
    perturb,
    stream,
    weights,
)
from rehearsal_helpers import (
    CLASSES,
    RATE,
    cross_entropies,
    examples,
    rehearsal_learner,
    step,
    two_layer_outputs,
)
from strategy_helpers import Named, after_gradient_step
from torch import Tensor

from everloop.contract import Output
from everloop.loop import ERACE, Forward, ICaRL, Strategy, SupervisedLearner, Training


def normalised_features(module: Any, x: Tensor) -> Tensor:
    phi = torch.tanh(x @ module.layers[0].weight.T + module.layers[0].bias)
    return (phi / phi.norm(dim=1, keepdim=True)).detach()


def herd(phi: Tensor, count: int) -> list[int]:
    """Pick exemplars so that their mean is always nearest to the mean of all."""
    picked: list[int] = []
    for _ in range(count):
        left = [i for i in range(len(phi)) if i not in picked]
        picked.append(
            min(left, key=lambda i: float((phi[[*picked, i]].mean(0) - phi.mean(0)).norm()))
        )
    return picked


class IncrementalTasks:
    """iCaRL after two tasks of two classes each, with the exemplars it should have."""

    def __init__(self, strength: float = 1.0, capacity: int = 9) -> None:
        self.icarl = ICaRL(strength, capacity, batch_size=5)
        self.learner, self.exemplars = rehearsal_learner([self.icarl]), dict[int, Tensor]()
        for task, labels in enumerate(([3, 0], [1, 4])):
            self.icarl.begin_task(Named(task), self.learner)
            for i in range(3):
                step(self.learner, examples(8, task, seed=10 * task + i, labels=labels * 4))
            self.end_task(task, labels)

    def end_task(self, task: int, labels: list[int]) -> None:
        batches = [examples(6, task, seed=100 * task + i, labels=labels * 3) for i in range(2)]
        self.old = copy.deepcopy(self.learner.module)
        x = torch.cat([b.obs["x"][0] for b in batches])
        y = torch.cat([b.target[0] for b in batches])  # type: ignore[index]
        share = self.icarl.capacity // (len(self.exemplars) + len(labels))
        self.exemplars = {label: chosen[:share] for label, chosen in self.exemplars.items()}
        for label in labels:
            mine = x[y == label]
            self.exemplars[label] = mine[
                herd(normalised_features(self.old, mine), min(share, len(mine)))
            ]
        self.icarl.end_task(Named(task), batches, self.learner)


@pytest.mark.parametrize("capacity", [5, 9, 40])
def test_herded_exemplars_share_the_capacity_equally_among_classes(capacity: int) -> None:
    """capacity / classes of each; when new classes come, old ones keep their first exemplars."""
    increments = IncrementalTasks(capacity=capacity)
    assert set(increments.icarl.rows) == set(increments.exemplars) == {0, 1, 3, 4}
    for label, rows in increments.icarl.rows.items():
        items = increments.icarl.store.read(np.array(rows))
        np.testing.assert_array_equal(items["obs.x"][:, 0], increments.exemplars[label].numpy())
        assert set(items["target"].flatten().tolist()) == {label}
        assert len(rows) == min(6, capacity // 4)
    taken = [row for rows in increments.icarl.rows.values() for row in rows]
    assert len(set(taken)) == len(taken) <= capacity


def test_icarls_view_classifies_by_the_nearest_mean_of_exemplars() -> None:
    """Means of normalised features, normalised again, with the present weights.

    Classes without exemplars are never predicted, and the view leaves no trace.
    """
    increments = IncrementalTasks()
    perturb(increments.learner.module, 5)
    x = examples(200, seed=77).obs["x"]
    batch = examples(200, seed=77)
    usual = increments.learner.outputs(batch)
    with increments.icarl.view(Named(), increments.learner):
        guesses = increments.learner.outputs(batch).argmax(-1)[0]
    assert torch.equal(increments.learner.outputs(batch), usual)
    assert torch.equal(usual[0], two_layer_outputs(increments.learner.module, x[0]))
    phi, labels = normalised_features(increments.learner.module, x[0]), sorted(increments.exemplars)
    means = torch.stack(
        [
            normalised_features(increments.learner.module, increments.exemplars[label]).mean(0)
            for label in labels
        ]
    )
    distances = torch.stack([(phi - mean / mean.norm()).norm(dim=1) for mean in means], 1)
    assert guesses.tolist() == [labels[i] for i in distances.argmin(1).tolist()]
    assert set(guesses.tolist()) == set(labels)


def test_before_the_first_tasks_end_icarls_view_changes_nothing() -> None:
    icarl, batch = ICaRL(), examples(9)
    learner = rehearsal_learner([icarl])
    with icarl.view(Named(), learner):
        seen = learner.outputs(batch)
    assert torch.equal(seen, learner.outputs(batch))


@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_icarls_update_descends_its_binary_cross_entropies(
    strength: float,
) -> None:
    """-sum_c t log s(z_c) + (1 - t) log(1 - s(z_c)), of fresh examples and of exemplars.

    t = s(z*_c) for old classes that do not return, else 1 for the label and 0 for other classes.
    Class 2 is new; classes 0 and 1 return.
    """
    increments = IncrementalTasks(strength)
    icarl = increments.icarl
    learner = increments.learner
    old = increments.old
    icarl.begin_task(Named(2), learner)
    perturb(learner.module, 4, 0.2)
    before, batch = copy.deepcopy(learner.module), examples(6, 2, seed=5, labels=[2, 2, 2, 0, 2, 1])
    rows = np.concatenate(list(icarl.rows.values()))
    drawn = icarl.store.read(rows[copy.deepcopy(icarl.rng).integers(0, len(rows), 5)])

    def written(x: Tensor, y: Tensor) -> Tensor:
        s = torch.sigmoid(two_layer_outputs(before, x))
        s_old = torch.sigmoid(two_layer_outputs(old, x)).detach()
        total = torch.zeros(len(x), dtype=torch.float64)
        for c in range(CLASSES):
            t = s_old[:, c] if c in {3, 4} else (y == c).double()
            total = total - t * s[:, c].log() - (1 - t) * (1 - s[:, c]).log()
        return total.mean()

    x, y = batch.obs["x"][0], batch.target[0]  # type: ignore[index]
    stored_x = torch.from_numpy(drawn["obs.x"][:, 0])
    stored_y = torch.from_numpy(drawn["target"][:, 0])
    total = (
        strength * (written(x, y) + written(stored_x, stored_y))
        + (1 - strength) * cross_entropies(two_layer_outputs(before, x), y).mean()
    )
    step(learner, batch)
    expected = after_gradient_step(before, total, RATE)
    assert distance(weights(learner.module), expected) < 1e-9


def test_at_strength_1_the_task_loss_plays_no_part() -> None:
    ends = []
    for balanced in (False, True):
        learner, icarl = digit_learner(balanced=balanced), ICaRL(capacity=20, batch_size=4)
        learner.attach([icarl])
        for task in (0, 1):
            learner.learn([task], 64)
            icarl.end_task(
                learner.world.tasks[task],
                [learner.rollout(stream(), [task], 4, seed=task)],
                learner,
            )
        ends.append(weights(learner.module))
    assert distance(*ends) < 1e-12


def test_in_the_first_task_icarl_learns_only_the_labels() -> None:
    icarl = ICaRL()
    learner = rehearsal_learner([icarl])
    before, batch = copy.deepcopy(learner.module), examples(6)
    s = torch.sigmoid(two_layer_outputs(before, batch.obs["x"][0]))
    t = F.one_hot(batch.target[0], CLASSES)  # type: ignore[index]
    total = -(t * s.log() + (1 - t) * (1 - s).log()).sum(1).mean()
    step(learner, batch)
    expected = after_gradient_step(before, total, RATE)
    assert distance(weights(learner.module), expected) < 1e-9


def test_if_all_classes_return_icarl_learns_only_their_labels() -> None:
    """The loss is the binary cross-entropy of the labels, as in the first task."""
    icarl = ICaRL(capacity=20, batch_size=4)
    learner = rehearsal_learner([icarl])
    for task in (0, 1):
        icarl.begin_task(Named(task), learner)
        batch = examples(10, task, seed=task, labels=[0, 1, 2, 3, 4] * 2)
        icarl.observe(batch, learner)
        logits = learner.outputs(batch)
        t = F.one_hot(batch.target, CLASSES).double()  # type: ignore[arg-type]
        expected = F.binary_cross_entropy_with_logits(logits, t, reduction="none").sum(-1).mean()
        own = icarl.loss(Forward(batch, Output(logits)), None, learner)
        assert own is not None
        torch.testing.assert_close(own, expected)
        icarl.end_task(Named(task), [batch], learner)
        perturb(learner.module, task)


def test_a_returning_class_is_herded_from_old_exemplars_and_new_examples() -> None:
    increments = IncrementalTasks(capacity=20)
    icarl, learner = increments.icarl, increments.learner
    icarl.begin_task(Named(2), learner)
    perturb(learner.module, 6)
    batch = examples(8, 2, seed=9, labels=[3, 2] * 4)
    others = {label: increments.exemplars[label] for label in (0, 1, 4)}
    x, y = batch.obs["x"][0], batch.target[0]  # type: ignore[index]
    icarl.end_task(Named(2), [batch], learner)
    for label, candidates in ((3, torch.cat([x[y == 3], increments.exemplars[3]])), (2, x[y == 2])):
        chosen = candidates[herd(normalised_features(learner.module, candidates), 4)]
        np.testing.assert_array_equal(
            icarl.store.read(icarl.rows[label])["obs.x"][:, 0], chosen.numpy()
        )
    for label, kept in others.items():
        np.testing.assert_array_equal(
            icarl.store.read(icarl.rows[label])["obs.x"][:, 0], kept[:4].numpy()
        )
    assert len({row for rows in icarl.rows.values() for row in rows}) == 20


def test_icarl_compares_means_in_single_precision_under_mixed_precision() -> None:
    """bfloat16 could not tell near means apart: it has no number between 1 - 2^-8 and 1."""
    learner = SupervisedLearner(
        mlp().float(), stream(), Training(precision="bfloat16", device="cpu")
    )
    icarl = ICaRL(capacity=20, batch_size=4)
    learner.attach([icarl])
    for task in range(5):
        icarl.end_task(
            learner.world.tasks[task], [learner.rollout(stream(), [task], 4, seed=task)], learner
        )
    batch = learner.rollout(stream(), [0, 1, 2, 3, 4], 8, seed=7)
    means = icarl._means(learner)
    phi = F.normalize(learner.features(batch).detach().float(), dim=1)
    assert means.dtype == torch.float32
    with icarl.view(learner.world.tasks[0], learner), torch.no_grad():
        seen = learner.outputs(batch)[0]
    torch.testing.assert_close(seen, -torch.cdist(phi, means))


def test_the_seed_determines_which_exemplars_are_replayed() -> None:
    def replayed(seed: int) -> Tensor:
        icarl = ICaRL(capacity=20, batch_size=16, seed=seed)
        learner = rehearsal_learner([icarl])
        icarl.end_task(Named(), [examples(20, labels=[0, 1, 2, 3, 4] * 4)], learner)
        stored = icarl.recall(learner)
        assert stored is not None
        return stored.obs["x"]

    assert torch.equal(replayed(1), replayed(1))
    assert not torch.equal(replayed(1), replayed(2))


def test_a_capacity_below_the_number_of_classes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^capacity is 4; it must be finite and 5 or more$"):
        rehearsal_learner([ICaRL(capacity=4)])


def test_only_one_strategy_may_replace_the_task_loss() -> None:
    with pytest.raises(
        ValueError,
        match=r"^er_ace replaces the task loss and icarl replaces the task loss, which can't be ",
    ):
        rehearsal_learner([ERACE(), ICaRL()])
    pairs: list[list[Strategy]] = [[ERACE(0.0), ICaRL()], [ICaRL(0.0), ERACE()]]
    for strategies in pairs:
        assert rehearsal_learner(strategies).strategies == [s for s in strategies if s.active]
