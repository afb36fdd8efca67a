"""Strategies in the depth of DQN and SAC: the same numbers as if everything stood in their own
loss.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import stable_baselines3.dqn.dqn
import torch
from loop_helpers import (
    DQN_PARAMETERS,
    SAC_PARAMETERS,
    GradientNorms,
    actor_net,
    critic_net,
    dial_plant,
    distance,
    off_policy_learner,
    off_policy_world,
    plant,
    random_states,
    rehearsal_loss,
    same,
    weights,
)
from stable_baselines3 import DQN, SAC
from torch import Tensor

from everloop.loop import (
    CLEAR,
    EWC,
    Batch,
    Forward,
    Learner,
    LwF,
    Replay,
    Strategy,
    WorldVecEnv,
    diagonal_fisher,
)
from everloop.loop.sb3.off_policy import QPolicy, SquashedPolicy

KINDS = pytest.mark.parametrize("sac", [False, True], ids=["dqn", "sac"])
STRENGTH, ENT_COEF, CLIP = 3.0, 0.5, 0.05
FIXED = {"ent_coef": ENT_COEF}


def penalty(policy: Any) -> Tensor:
    """EWC's, written out, on the network that strategies would see."""
    total = torch.zeros(())
    for fisher, then in policy.anchors:
        for w, f, w_then in zip(network_of(policy).parameters(), fisher, then, strict=True):
            total = total + (f * (w - w_then) ** 2).sum()
    return STRENGTH / 2 * total


def network_of(policy: Any) -> Any:
    return policy.q_net.network if hasattr(policy, "q_net") else policy.actor.adapter.network


def unmodified(sac: bool, parameters: dict[str, Any]) -> Any:
    """SB3 as everybody has it, which knows of no hook."""
    kwargs: dict[str, Any] = {"network": actor_net, "optimizer_kwargs": {"fused": True}}
    if sac:
        policy_kwargs = kwargs | {"critic": critic_net}
        return SAC(
            SquashedPolicy,
            WorldVecEnv(plant()),
            **SAC_PARAMETERS | parameters,
            policy_kwargs=policy_kwargs,
            seed=0,
            device="cpu",
        )
    clip = {"max_grad_norm": CLIP}
    return DQN(
        QPolicy,
        WorldVecEnv(dial_plant()),
        **DQN_PARAMETERS | clip | parameters,
        policy_kwargs=kwargs,
        seed=0,
        device="cpu",
    )


def plain_training(
    sac: bool,
    tasks: int,
    anchored: bool = False,
    empty_buffer: bool = False,
    parameters: dict[str, Any] | None = None,
) -> list[list[Tensor]]:
    """Weights after each task; `anchored`: under a penalty, which the loss must hold, around the
    weights at each earlier task's end.
    """
    model, found = unmodified(sac, parameters or {}), []
    policy = model.policy
    policy.anchors = []
    if anchored and sac:
        judge = policy.actor.action_log_prob

        def penalised(obs: Any) -> tuple[Tensor, Tensor]:
            actions, log_prob = judge(obs)
            return actions, log_prob + penalty(
                policy
            ) / ENT_COEF if torch.is_grad_enabled() else log_prob

        policy.actor.action_log_prob = penalised
    looker = off_policy_learner(
        sac
    )  # judges the model's network for the Fisher information, and never learns
    looker.module = network_of(policy)
    model.set_random_seed(0)  # making the looker drew from the global generators
    if anchored and not sac:
        huber = torch.nn.functional.smooth_l1_loss
        functional = SimpleNamespace(
            smooth_l1_loss=lambda q, target: huber(q, target) + penalty(policy)
        )
        stable_baselines3.dqn.dqn.F = functional  # type: ignore[attr-defined]
    for task in range(tasks):
        if empty_buffer:
            model.replay_buffer.reset()
        model.env.tasks = [task]
        model.learn(96)
        if anchored:
            batch = looker.rollout(off_policy_world(sac, 6), [task], 8, seed=task)
            policy.anchors = [
                *policy.anchors,
                (diagonal_fisher(looker, [batch], by_hooks=False).values(), weights(looker.module)),
            ]
        found.append(weights(looker.module))
    return found


def our_training(
    sac: bool,
    tasks: int,
    strategies: list[Strategy],
    parameters: dict[str, Any] | None = None,
    reset_buffer: bool = False,
) -> tuple[Any, list[list[Tensor]]]:
    clip = {} if sac else {"max_grad_norm": CLIP}
    learner = off_policy_learner(sac, parameters=parameters, reset_buffer=reset_buffer, **clip)
    learner.attach(strategies)
    learner.seed(0)
    found = []
    for task in range(tasks):
        for strategy in strategies:
            strategy.begin_task(learner.world.tasks[task], learner)
        learner.learn([task], 96)
        batch = learner.rollout(off_policy_world(sac, 6), [task], 8, seed=task)
        for strategy in strategies:
            strategy.end_task(learner.world.tasks[task], [batch], learner)
        found.append(weights(learner.module))
    return learner, found


@pytest.mark.parametrize("reset_buffer", [False, True], ids=["one buffer", "a buffer a task"])
@KINDS
def test_no_strategies_are_unmodified_sb3_to_the_last_bit(sac: bool, reset_buffer: bool) -> None:
    learner, found = our_training(sac, 3, [], reset_buffer=reset_buffer)
    for ours, theirs in zip(found, plain_training(sac, 3, empty_buffer=reset_buffer), strict=True):
        assert same(ours, theirs)
    assert not same(found[0], found[1])
    assert learner.model.replay_buffer.size() == (24 if reset_buffer else 72)


@KINDS
def test_strength_0_is_unmodified_sb3_to_the_last_bit(sac: bool) -> None:
    """Hooks, memories, task ends and all: as if they were not there."""
    _, found = our_training(sac, 3, [EWC(0.0), Replay(0.0), LwF(0.0), CLEAR(0.0)])
    for ours, theirs in zip(found, plain_training(sac, 3), strict=True):
        assert same(ours, theirs)


@KINDS
def test_ewc_equals_a_penalty_in_the_loss(sac: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three tasks, two penalties, DQN's clipping at work: the same weights."""
    monkeypatch.setattr("stable_baselines3.dqn.dqn.F", torch.nn.functional)  # put back at the end
    parameters = FIXED if sac else {}
    norms = GradientNorms()
    _, found = our_training(sac, 3, [EWC(STRENGTH, fisher="empirical"), norms], parameters)
    _, without = our_training(sac, 3, [], parameters)
    expected = plain_training(sac, 3, anchored=True, parameters=parameters)
    if not sac:
        assert sum(norm > CLIP for norm in norms.values) > len(norms.values) / 2
    for ours, theirs in zip(found, expected, strict=True):
        assert distance(ours, theirs) < 2e-5
    assert same(found[0], expected[0])
    assert distance(without[-1], expected[-1]) > 1e-2


@pytest.mark.parametrize(
    "make", [lambda: Replay(5.0, 50, 8), lambda: LwF(5.0)], ids=["replay", "lwf"]
)
@KINDS
def test_a_strategys_loss_adds_its_gradient_to_the_algorithms(
    sac: bool, make: Callable[[], Any]
) -> None:
    """One update of the second task, with and without the strategy, from the same weights and the
    same minibatch.
    """

    class Capture(Strategy):
        """The gradient and the strategy's own gradient at the first update of the second task."""

        def __init__(self, strategy: Any) -> None:
            self.strategy, self.armed = strategy, False
            self.total: list[Tensor] = []
            self.own: list[Tensor] = []

        def loss(self, fresh: Any, replayed: Any, learner: Learner) -> None:
            self.batch = fresh.batch

        def recall(self, learner: Learner) -> None:
            if self.armed and not self.own and self.strategy is not None:
                batch = self.batch
                state = self.strategy.state_dict()
                loss = self.strategy.loss(Forward(batch, learner.forward(batch)), None, learner)
                loss = rehearsal_loss(self.strategy, learner) if loss is None else loss
                self.strategy.load_state_dict(state, learner)
                assert float(loss.detach()) > 1e-6
                self.own = list(torch.autograd.grad(loss, list(learner.module.parameters())))

        def edit_gradients(self, batch: Batch, learner: Learner) -> None:
            if self.armed and not self.total:
                self.total = [
                    p.grad.clone() for p in learner.module.parameters() if p.grad is not None
                ]

    def first_update(strategy: Any) -> Capture:
        capture = Capture(strategy)
        learner, _ = our_training(sac, 1, [capture] if strategy is None else [capture, strategy])
        torch.manual_seed(1)
        with torch.no_grad():
            for p in learner.module.parameters():
                p.add_(
                    0.1 * torch.randn_like(p)
                )  # away from the stored policy, where the loss is 0
        capture.armed = True
        learner.seed(3)
        learner.learn([1], 32)
        return capture

    with_it, without = first_update(make()), first_update(None)
    assert max(float(g.abs().max()) for g in with_it.own) > 1e-3
    for total, plain, own in zip(with_it.total, without.total, with_it.own, strict=True):
        torch.testing.assert_close(total, plain + own, rtol=1e-4, atol=1e-5)


@KINDS
def test_strategies_draw_from_no_global_generator(sac: bool) -> None:
    states = []
    for strategies in ([], [Replay(1.0, 50, 8), LwF(), EWC(1.0), CLEAR(1.0, 1.0, 50, 8)]):
        our_training(sac, 3, strategies)
        states.append(random_states())
    assert states[0] == states[1]
