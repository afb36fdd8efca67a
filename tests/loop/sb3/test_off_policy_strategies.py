"""Strategies in DQN and SAC equal the same terms written into the algorithms' own losses."""

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
    actor_net,
    critic_net,
    dial_plant,
    distance,
    off_policy_learner,
    off_policy_world,
    plant,
    random_states,
    same,
)
from sb3_helpers import (
    ewc_penalty,
    gradients_in_task_1,
    train_unmodified,
    train_with_strategies,
)
from stable_baselines3 import DQN, SAC
from stub_helpers import GradientNorms
from torch import Tensor

from everloop.loop import CLEAR, EWC, LwF, Replay, Strategy, WorldVecEnv
from everloop.loop.sb3.off_policy_networks import QPolicy, SquashedPolicy

KINDS = pytest.mark.parametrize("sac", [False, True], ids=["dqn", "sac"])
STRENGTH = 3.0
ENT_COEF = 0.5
CLIP = 0.05
FIXED = {"ent_coef": ENT_COEF}
STEPS = 96


def unmodified_model(sac: bool, parameters: dict[str, Any]) -> Any:
    """DQN or SAC of SB3, without our hooks."""
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


def add_ewc_penalty(sac: bool, policy: Any, network: torch.nn.Module) -> None:
    """Patch SB3 so that the loss of the actor or the Q-network contains EWC's penalty."""
    if sac:  # the actor's loss contains ent_coef times the log probability
        action_log_prob = policy.actor.action_log_prob

        def penalised(obs: Any) -> tuple[Tensor, Tensor]:
            actions, log_prob = action_log_prob(obs)
            if torch.is_grad_enabled():
                log_prob = log_prob + ewc_penalty(network, policy.anchors, STRENGTH) / ENT_COEF
            return actions, log_prob

        policy.actor.action_log_prob = penalised
        return
    huber = torch.nn.functional.smooth_l1_loss
    stable_baselines3.dqn.dqn.F = SimpleNamespace(  # type: ignore[attr-defined]
        smooth_l1_loss=lambda q, target: (
            huber(q, target) + ewc_penalty(network, policy.anchors, STRENGTH)
        )
    )


def train_sb3(
    sac: bool,
    tasks: int,
    penalised: bool = False,
    empty_buffer: bool = False,
    parameters: dict[str, Any] | None = None,
) -> list[list[Tensor]]:
    """The weights of unmodified DQN or SAC after each task, under a penalty if `penalised`."""
    model = unmodified_model(sac, parameters or {})
    policy = model.policy
    network = policy.actor.adapter.network if sac else policy.q_net.network
    if penalised:
        add_ewc_penalty(sac, policy, network)
    world = off_policy_world(sac, 6) if penalised else None
    learner = off_policy_learner(sac)
    return train_unmodified(model, network, learner, tasks, STEPS, world, empty_buffer)


def make_learner(
    sac: bool, parameters: dict[str, Any] | None = None, reset_buffer: bool = False
) -> Any:
    """Our learner, which clips DQN's gradients like `unmodified_model`."""
    clip = {} if sac else {"max_grad_norm": CLIP}
    return off_policy_learner(sac, parameters=parameters, reset_buffer=reset_buffer, **clip)


def train(learner: Any, sac: bool, tasks: int, strategies: list[Strategy]) -> list[list[Tensor]]:
    """The weights of our learner after each task."""
    return train_with_strategies(learner, strategies, tasks, STEPS, off_policy_world(sac, 6))


@pytest.mark.parametrize("reset_buffer", [False, True], ids=["one buffer", "a buffer per task"])
@KINDS
def test_without_strategies_the_learner_equals_unmodified_sb3(
    sac: bool, reset_buffer: bool
) -> None:
    learner = make_learner(sac, reset_buffer=reset_buffer)
    found = train(learner, sac, 3, [])
    for ours, theirs in zip(found, train_sb3(sac, 3, empty_buffer=reset_buffer), strict=True):
        assert same(ours, theirs)
    assert not same(found[0], found[1])
    assert learner.model.replay_buffer.size() == (24 if reset_buffer else 72)


@KINDS
def test_strength_0_equals_unmodified_sb3_bit_for_bit(sac: bool) -> None:
    """Hooks, memories and the ends of tasks change nothing."""
    strategies = [EWC(0.0), Replay(0.0), LwF(0.0), CLEAR(0.0)]
    found = train(make_learner(sac), sac, 3, strategies)
    for ours, theirs in zip(found, train_sb3(sac, 3), strict=True):
        assert same(ours, theirs)


@KINDS
def test_ewc_equals_a_penalty_in_the_loss(sac: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three tasks with two penalties end at the same weights, while DQN's clipping is active."""
    monkeypatch.setattr("stable_baselines3.dqn.dqn.F", torch.nn.functional)  # undoes the patch
    parameters = FIXED if sac else {}
    norms = GradientNorms()
    strategies = [EWC(STRENGTH, fisher="empirical"), norms]
    found = train(make_learner(sac, parameters), sac, 3, strategies)
    without = train(make_learner(sac, parameters), sac, 3, [])
    expected = train_sb3(sac, 3, penalised=True, parameters=parameters)
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
def test_a_strategy_adds_the_gradient_of_its_loss(sac: bool, make: Callable[[], Any]) -> None:
    """One update of task 1 with and without the strategy, from the same weights and minibatch."""
    with_strategy, without = (
        gradients_in_task_1(make_learner(sac), strategy, STEPS, off_policy_world(sac, 6))
        for strategy in (make(), None)
    )
    assert max(float(g.abs().max()) for g in with_strategy.own) > 1e-3
    for total, plain, own in zip(
        with_strategy.total, without.total, with_strategy.own, strict=True
    ):
        torch.testing.assert_close(total, plain + own, rtol=1e-4, atol=1e-5)


@KINDS
def test_strategies_do_not_draw_from_global_generators(sac: bool) -> None:
    states = []
    for strategies in ([], [Replay(1.0, 50, 8), LwF(), EWC(1.0), CLEAR(1.0, None, 50, 8)]):
        train(make_learner(sac), sac, 3, strategies)
        states.append(random_states())
    assert states[0] == states[1]
