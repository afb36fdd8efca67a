"""iCaRL: herding, the nearest mean, and its losses as written."""

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
    gradients,
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
from strategy_helpers import Named
from torch import Tensor

from everloop.contract import Output
from everloop.loop import ERACE, Forward, ICaRL, Strategy, SupervisedLearner, Training


def normalised_features(module: Any, x: Tensor) -> Tensor:
    phi = torch.tanh(x @ module.layers[0].weight.T + module.layers[0].bias)
    return (phi / phi.norm(dim=1, keepdim=True)).detach()


def herd(phi: Tensor, count: int) -> list[int]:
    """Each next exemplar makes the mean of those picked the nearest to the mean of all."""
    picked: list[int] = []
    for _ in range(count):
        left = [i for i in range(len(phi)) if i not in picked]
        picked.append(
            min(left, key=lambda i: float((phi[[*picked, i]].mean(0) - phi.mean(0)).norm()))
        )
    return picked


class IncrementalTasks:
    """Two tasks of two classes each, learned by iCaRL; what it should know of them, worked out
    beside it.
    """

    def __init__(self, strength: float = 1.0, capacity: int = 9) -> None:
        self.icarl = ICaRL(strength, capacity, batch_size=5)
        self.learner, self.exemplars = rehearsal_learner([self.icarl]), dict[int, Tensor]()
        for task, labels in enumerate(([3, 0], [1, 4])):
            self.icarl.begin_task(Named(task), self.learner)
            for i in range(3):
                step(self.learner, examples(8, task, seed=10 * task + i, labels=labels * 4))
            self.end_task(task, labels)

    def end_task(self, task: int, labels: list[int]) -> None:
        brought = [examples(6, task, seed=100 * task + i, labels=labels * 3) for i in range(2)]
        self.old = copy.deepcopy(self.learner.module)
        x, y = (
            torch.cat([b.obs["x"][0] for b in brought]),
            torch.cat([b.target[0] for b in brought]),
        )  # type: ignore[index]
        share = self.icarl.capacity // (len(self.exemplars) + len(labels))
        self.exemplars = {label: chosen[:share] for label, chosen in self.exemplars.items()}
        for label in labels:
            mine = x[y == label]
            self.exemplars[label] = mine[
                herd(normalised_features(self.old, mine), min(share, len(mine)))
            ]
        self.icarl.end_task(Named(task), brought, self.learner)


@pytest.mark.parametrize("capacity", [5, 9, 40])
def test_exemplars_are_those_of_herding_and_every_class_has_the_same_share(capacity: int) -> None:
    """capacity / classes of each; when new classes come, the best of the old ones stay."""
    made = IncrementalTasks(capacity=capacity)
    assert set(made.icarl.rows) == set(made.exemplars) == {0, 1, 3, 4}
    for label, rows in made.icarl.rows.items():
        items = made.icarl.store.read(np.array(rows))
        np.testing.assert_array_equal(items["obs.x"][:, 0], made.exemplars[label].numpy())
        assert set(items["target"].flatten().tolist()) == {label}
        assert len(rows) == min(6, capacity // 4)
    taken = [row for rows in made.icarl.rows.values() for row in rows]
    assert len(set(taken)) == len(taken) <= capacity


def test_under_its_view_the_nearest_mean_of_exemplars_answers() -> None:
    """Means of normalised features, normalised again, as the network sees the exemplars now, not
    when it chose them.

    Classes of no exemplar are never guessed; afterwards all is as it was.
    """
    made = IncrementalTasks()
    perturb(made.learner.module, 5)
    x = examples(200, seed=77).obs["x"]
    batch = examples(200, seed=77)
    usual = made.learner.outputs(batch)
    with made.icarl.view(Named(), made.learner):
        guesses = made.learner.outputs(batch).argmax(-1)[0]
    assert torch.equal(made.learner.outputs(batch), usual)
    assert torch.equal(usual[0], two_layer_outputs(made.learner.module, x[0]))
    phi, labels = normalised_features(made.learner.module, x[0]), sorted(made.exemplars)
    means = torch.stack(
        [
            normalised_features(made.learner.module, made.exemplars[label]).mean(0)
            for label in labels
        ]
    )
    distances = torch.stack([(phi - mean / mean.norm()).norm(dim=1) for mean in means], 1)
    assert guesses.tolist() == [labels[i] for i in distances.argmin(1).tolist()]
    assert set(guesses.tolist()) == set(labels)


def test_before_the_first_tasks_end_its_view_changes_nothing() -> None:
    icarl, batch = ICaRL(), examples(9)
    learner = rehearsal_learner([icarl])
    with icarl.view(Named(), learner):
        seen = learner.outputs(batch)
    assert torch.equal(seen, learner.outputs(batch))


@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_icarl_moves_along_its_binary_cross_entropies_of_fresh_examples_and_exemplars(
    strength: float,
) -> None:
    """-sum_c t log s(z_c) + (1 - t) log(1 - s(z_c)), t = s(z*_c) for classes of ended tasks alone,
    else whether c is the label.

    Class 2 is new, 0 and 1 come back.
    """
    made = IncrementalTasks(strength)
    icarl = made.icarl
    learner = made.learner
    old = made.old
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
    expected = [
        p.detach() - RATE * g
        for p, g in zip(before.parameters(), gradients(total, before), strict=True)
    ]
    assert distance(weights(learner.module), expected) < 1e-9


def test_at_strength_1_icarls_losses_are_all_whatever_the_plain_loss_is() -> None:
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


def test_in_its_first_task_icarl_learns_the_labels_alone() -> None:
    icarl = ICaRL()
    learner = rehearsal_learner([icarl])
    before, batch = copy.deepcopy(learner.module), examples(6)
    s, t = (
        torch.sigmoid(two_layer_outputs(before, batch.obs["x"][0])),
        F.one_hot(batch.target[0], CLASSES),
    )  # type: ignore[index]
    total = -(t * s.log() + (1 - t) * (1 - s).log()).sum(1).mean()
    step(learner, batch)
    expected = [
        p.detach() - RATE * g
        for p, g in zip(before.parameters(), gradients(total, before), strict=True)
    ]
    assert distance(weights(learner.module), expected) < 1e-9


def test_where_all_classes_come_back_their_labels_are_learned() -> None:
    """Binary cross-entropy of fresh examples and exemplars, as in the first task, whatever the old
    network says.
    """
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


def test_exemplars_of_a_returning_class_are_herded_from_the_old_ones_and_the_new_examples() -> None:
    made = IncrementalTasks(capacity=20)
    icarl, learner = made.icarl, made.learner
    icarl.begin_task(Named(2), learner)
    perturb(learner.module, 6)
    brought = examples(8, 2, seed=9, labels=[3, 2] * 4)
    others = {label: made.exemplars[label] for label in (0, 1, 4)}
    x, y = brought.obs["x"][0], brought.target[0]  # type: ignore[index]
    icarl.end_task(Named(2), [brought], learner)
    for label, candidates in ((3, torch.cat([x[y == 3], made.exemplars[3]])), (2, x[y == 2])):
        chosen = candidates[herd(normalised_features(learner.module, candidates), 4)]
        np.testing.assert_array_equal(
            icarl.store.read(icarl.rows[label])["obs.x"][:, 0], chosen.numpy()
        )
    for label, kept in others.items():
        np.testing.assert_array_equal(
            icarl.store.read(icarl.rows[label])["obs.x"][:, 0], kept[:4].numpy()
        )
    assert len({row for rows in icarl.rows.values() for row in rows}) == 20


def test_the_nearest_mean_is_the_same_in_mixed_precision_given_the_same_features() -> None:
    """Half of single precision would take near means for the same: distances are 1 - 2^-8 or 1, and
    nothing in between.
    """
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


def test_the_seed_says_which_exemplars_are_recalled() -> None:
    def recalled(seed: int) -> Tensor:
        icarl = ICaRL(capacity=20, batch_size=16, seed=seed)
        learner = rehearsal_learner([icarl])
        icarl.end_task(Named(), [examples(20, labels=[0, 1, 2, 3, 4] * 4)], learner)
        stored = icarl.recall(learner)
        assert stored is not None
        return stored.obs["x"]

    assert torch.equal(recalled(1), recalled(1))
    assert not torch.equal(recalled(1), recalled(2))


def test_more_classes_than_exemplars_are_refused_before_anything_is_learned() -> None:
    with pytest.raises(ValueError, match=r"^capacity is 4; it must be finite and 5 or more$"):
        rehearsal_learner([ICaRL(capacity=4)])


def test_what_replaces_the_plain_loss_does_so_alone() -> None:
    with pytest.raises(
        ValueError,
        match=r"^er_ace replaces the task loss and icarl replaces the task loss, which can't be ",
    ):
        rehearsal_learner([ERACE(), ICaRL()])
    pairs: list[list[Strategy]] = [[ERACE(0.0), ICaRL()], [ICaRL(0.0), ERACE()]]
    for strategies in pairs:
        assert rehearsal_learner(strategies).strategies == [s for s in strategies if s.active]
