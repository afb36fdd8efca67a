"""Random observations, to see before training what a network does with them."""

from __future__ import annotations

import copy

import numpy as np
import torch

from everloop.contract import World
from everloop.loop.batch import Batch, to_tensor


def sample_of(world: World, device: torch.device) -> Batch:
    """Return two random observations from the world's observation space."""
    space = copy.deepcopy(world.single_observation_space)
    space.seed(0)
    drawn = [space.sample() for _ in range(2)]
    obs = {name: to_tensor(np.stack([x[name] for x in drawn])[None], device) for name in drawn[0]}
    return Batch(obs, torch.ones(1, 2, dtype=torch.bool, device=device))
