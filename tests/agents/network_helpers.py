"""Inputs and measurements that several tests of networks share."""

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn


def images(rows: int, *shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (rows, *shape), dtype=torch.uint8, generator=generator)


def boolean_rows(most_rows: int) -> st.SearchStrategy[list[list[bool]]]:
    """Return a strategy for 1 to `most_rows` rows of 1 to 5 booleans, all of the same length."""
    return st.tuples(st.integers(1, most_rows), st.integers(1, 5)).flatmap(
        lambda shape: st.lists(
            st.lists(st.booleans(), min_size=shape[1], max_size=shape[1]),
            min_size=shape[0],
            max_size=shape[0],
        )
    )


def first_predictions(net: nn.Module, obs: dict[str, Tensor]) -> Tensor:
    """Return the predictions of observations (1, B, ...), the first of their episodes."""
    B = next(iter(obs.values())).shape[1]
    output, _ = net(obs, net.initial_state(B), torch.ones(1, B, dtype=torch.bool))
    return output.prediction


def gradients_and_saved(net: nn.Module, x: Tensor) -> tuple[list[Any], int]:
    """Return the gradients of one loss and how many numbers were saved for the backward pass."""
    saved = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        features = net(x)
    features.square().sum().backward()
    return [p.grad for p in net.parameters()], sum(saved)
