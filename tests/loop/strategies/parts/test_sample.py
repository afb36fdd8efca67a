"""A sample of a world's observations."""

from __future__ import annotations

import copy

import torch
from loop_helpers import plant

from everloop.loop.strategies.parts.sample import sample_of


def test_a_sample_is_always_the_same_and_draws_nothing_from_the_worlds_space() -> None:
    world, device = plant(), torch.device("cpu")
    space = world.single_observation_space
    space.seed(5)
    expected = copy.deepcopy(space).sample()
    first, second = sample_of(world, device), sample_of(world, device)
    drawn = space.sample()
    space.seed(6)
    third = sample_of(world, device)
    for name, value in first.obs.items():
        assert value.shape == (1, 2, *space[name].shape)
        assert torch.equal(value, second.obs[name])
        assert torch.equal(value, third.obs[name])
        assert (drawn[name] == expected[name]).all()
