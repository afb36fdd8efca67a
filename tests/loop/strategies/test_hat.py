"""HAT: old tasks stay bit for bit; views, saved states, refusals."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from architecture_helpers import (
    check_view_leaves_no_trace,
    examples,
    learn_four_tasks,
    learn_task,
    task_aware_learner,
    view_outputs,
)
from hat_helpers import (
    EVERY_NETWORK,
    LEARNERS,
    batches,
    learn_hat_task,
    masked_learner,
    named_weights,
    quick_hat,
)
from loop_helpers import (
    control_learner,
    learn_tasks,
    off_policy_learner,
    off_policy_world,
    plant,
    same,
    stream,
    update,
    weights,
)
from strategy_helpers import Named
from torch import Tensor, nn

from everloop.agents import MLP, ConvNet5
from everloop.loop import HAT, Learner, Strategy, SupervisedLearner, attach


@EVERY_NETWORK
def test_old_tasks_are_bit_equal_in_their_views_after_later_tasks(name: str) -> None:
    then, now, bare = learn_four_tasks(LEARNERS[name](), quick_hat())
    assert same(then, now)
    assert not torch.equal(bare, then[0])  # without the view the network has changed


@EVERY_NETWORK
def test_a_view_leaves_no_trace(name: str) -> None:
    learner, hat = LEARNERS[name](), quick_hat()
    learner.attach([hat])
    learn_task(learner, 0, 32)
    hat.begin_task(learner.world.tasks[1], learner)
    learner.learn([1], 32)  # a new period, so masks are soft
    check_view_leaves_no_trace(learner, hat)


def test_the_current_tasks_view_shows_it_as_it_will_be_stored() -> None:
    learner, hat = LEARNERS["mlp"](), quick_hat()
    learner.attach([hat])
    hat.begin_task(learner.world.tasks[0], learner)
    learner.learn([0], 32)
    batch = examples(learner, 0)
    shown = view_outputs(learner, hat, 0, batch)
    assert not torch.equal(shown, view_outputs(learner, Strategy(), 0, batch))
    hat.end_task(learner.world.tasks[0], [batch], learner)
    assert torch.equal(view_outputs(learner, hat, 0, batch), shown)
    assert torch.equal(view_outputs(learner, Strategy(), 0, batch), shown)


@EVERY_NETWORK
def test_later_tasks_can_still_be_learned(name: str) -> None:
    learner, hat = LEARNERS[name](), quick_hat(period=20)
    learner.attach([hat])
    learn_task(learner, 0)
    hat.begin_task(learner.world.tasks[1], learner)
    batch = examples(learner, 1, seed=3)

    @torch.no_grad()
    def loss() -> float:
        with hat.view(learner.world.tasks[1], learner), learner.evaluating():
            return float(learner.loss(batch))

    before = loss()
    learner.learn([1], 1600)
    assert loss() < 0.8 * before


def test_higher_sparsity_leaves_more_units_free_and_units_are_shared() -> None:
    def units_of(sparsity: float) -> tuple[float, float]:
        learner = task_aware_learner(MLP((8, 8, 1), (40, 40)), 1e-2)
        hat = HAT(sparsity=sparsity, rate=0.1, period=20)
        learner.attach([hat])
        for task in range(2):
            learn_task(learner, task, 480)
        first, second = (
            torch.cat([e > 0 for e in hat.tasks.keys[task].values()]) for task in range(2)
        )
        return float(first.sum()), float((second & ~first).sum())

    cheap, dear = units_of(0.0), units_of(5.0)
    assert dear[0] < 0.6 * cheap[0]
    assert dear[1] < cheap[0] / 2


def test_copies_of_the_network_keep_their_mask() -> None:
    learner, hat = LEARNERS["mlp"](), quick_hat()
    learner.attach([hat])
    learn_task(learner, 0, 32)
    batch = examples(learner, 0)
    frozen, copied = learner.frozen_copy(), copy.deepcopy(learner.module)
    outputs = view_outputs(learner, hat, 0, batch)
    learn_task(learner, 1, 32)
    for network in (frozen, copied):
        assert torch.equal(learner.outputs(batch, network).detach(), outputs)
    assert not any(p.requires_grad for p in frozen.parameters())


def test_hat_changes_neither_weight_names_optimizer_nor_state_dict() -> None:
    learner, hat = LEARNERS["mlp"](), quick_hat()
    names = list(learner.weights())
    saved = list(learner.module.state_dict())
    groups = len(learner.optimizer.param_groups)
    learner.attach([hat])
    learn_task(learner, 0, 32)
    assert list(learner.weights()) == names
    assert list(learner.module.state_dict()) == saved
    assert len(learner.optimizer.param_groups) == groups


@pytest.mark.parametrize("steps", [6, None], ids=["within a task", "between tasks"])
def test_a_saved_state_continues_bit_for_bit_in_a_new_network(steps: int | None) -> None:
    def final(restored: bool) -> tuple[list[Tensor], list[Tensor]]:
        learner, hat = masked_learner(torch.optim.Adam)
        learn_hat_task(learner, hat, 0)
        if steps is not None:
            hat.begin_task(Named(1), learner)
            for batch in batches(steps, 1):
                update(learner, batch)
        if restored:
            state = (
                *copy.deepcopy((learner.module.state_dict(), learner.optimizer.state_dict())),
                hat.state_dict(),
            )
            for batch in batches(4, 3):  # later updates do not reach the saved state
                update(learner, batch)
            learner, hat = masked_learner(torch.optim.Adam)
            learner.module.load_state_dict(state[0])
            learner.optimizer.load_state_dict(state[1])
            hat.load_state_dict(state[2], learner)
        (batch,) = batches(1, 9)
        outputs = [learner.outputs(batch).detach()]
        if steps is not None:
            for batch in batches(6, 2):
                update(learner, batch)
            hat.end_task(Named(1), list(batches(1)), learner)
        learn_hat_task(learner, hat, 2)
        for task in range(3):
            with hat.view(Named(task), learner):
                outputs.append(learner.outputs(batch).detach())
        return weights(learner.module), outputs

    assert all(same(a, b) for a, b in zip(final(True), final(False), strict=True))


def test_a_returning_task_resumes_its_mask_and_head() -> None:
    """Its view shows the present weights, then what will be stored."""
    learner, hat = masked_learner()
    learn_hat_task(learner, hat, 0)
    learn_hat_task(learner, hat, 1)
    first, head = {name: e.clone() for name, e in hat.tasks.keys[0].items()}, hat.tasks.tensors[0]
    hat.begin_task(Named(0), learner)
    now = dict(learner.module.named_parameters())
    assert len(head) == 2
    assert all(torch.equal(now[name], value) for name, value in head.items())
    assert all(torch.equal(hat.e[name], e) for name, e in first.items())
    for batch in batches(3, 3):
        update(learner, batch)
    assert not all(torch.equal(hat.e[name], e) for name, e in first.items())
    (batch,) = batches(1, 9)
    with hat.view(Named(0), learner):
        shown = learner.outputs(batch).detach()
    hat.end_task(Named(0), [batch], learner)
    with hat.view(Named(0), learner):
        assert torch.equal(learner.outputs(batch), shown)


def test_in_control_value_and_policy_heads_stay_free() -> None:
    learner, hat = control_learner(world=plant(task_cue=True)), quick_hat()
    learner.attach([hat])
    learn_tasks(learner, [0], world=plant(task_cue=True))
    free = {name for name in learner.weights() if name not in hat.used}
    assert free == {f"{part}.linear.{p}" for part in ("head", "value") for p in ("weight", "bias")}
    assert bool(hat.used["attention.norm.weight"].all())
    assert not any(name.startswith("value") for name in hat.e)
    batch = learner.rollout(plant(task_cue=True), [0], 8, seed=7)
    then = view_outputs(learner, hat, 0, batch)
    value = named_weights(learner)["value.linear.weight"]
    learn_tasks(learner, [1], world=plant(task_cue=True))
    assert torch.equal(view_outputs(learner, hat, 0, batch), then)
    assert not torch.equal(named_weights(learner)["value.linear.weight"], value)


REFUSED: dict[str, tuple[Callable[[], Learner], str]] = {
    "recurrent": (
        lambda: control_learner(recurrent=True, world=plant(task_cue=True)),
        "use a network without a recurrent layer",
    ),
    "batch norm": (
        lambda: task_aware_learner(ConvNet5((8, 8, 1), (12, 12))),
        "batch norm undoes the masks of hat; use norm group",
    ),
    "dqn": (
        lambda: off_policy_learner(world=off_policy_world(sac=False, task_cue=True)),
        "target network .* use replay or ewc",
    ),
    "no units": (lambda: task_aware_learner(MLP((8, 8, 1), ())), "hat finds no hidden units"),
    "task-agnostic": (
        lambda: SupervisedLearner(task_aware_learner(MLP((8, 8, 1), (4,))).module, stream()),
        "hat needs the task ID to choose a mask",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_hat_is_refused_before_it_changes_the_network(name: str) -> None:
    make, why = REFUSED[name]
    learner = make()
    with pytest.raises(ValueError, match=why):
        learner.attach([HAT()])
    assert not any(layer._forward_hooks for layer in learner.module.modules())
    learner.attach([HAT(masks=False)])


def test_hat_is_refused_in_a_foreign_loop_without_task_ids() -> None:
    module = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    with pytest.raises(ValueError, match="hat needs the task ID to choose a mask"):
        attach([HAT()], module, torch.optim.SGD(module.parameters(), lr=0.1))


def test_hat_accepts_frozen_batch_norm_below_its_units() -> None:
    network = ConvNet5((8, 8, 1), (12, 12))
    network.freeze_convolutions()
    learner, hat = task_aware_learner(network), quick_hat()
    learner.attach([hat])
    learn_task(learner, 0, 32)
    assert set(hat.e) == {"backbone.layers.0", "backbone.layers.2"}
