"""A strategy's own generator, and torch's global one."""

from __future__ import annotations

import torch
from strategy_helpers import make_learner, one_layer

from everloop.loop.strategies.parts.rng import generator_for, isolated_rng


def test_isolated_draws_follow_the_own_generator_and_leave_the_global_one_alone() -> None:
    learner = make_learner(one_layer())

    def draws(seed: int, disturbance: int) -> list[float]:
        own = torch.Generator().manual_seed(seed)
        torch.manual_seed(disturbance)
        before, found = torch.get_rng_state(), []
        for _ in range(2):
            with isolated_rng(learner, own):
                found.append(float(torch.rand(())))
            found.append(float(torch.rand((), generator=generator_for(learner, own))))
        assert torch.equal(torch.get_rng_state(), before)
        return found

    assert draws(1, 5) == draws(1, 6) != draws(2, 5)
    assert len(set(draws(1, 5))) == 4
