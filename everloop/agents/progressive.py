"""Fully connected networks that can grow while they learn."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everloop.agents.networks import flat_size, pixels_to_1, precision


def _sizes(input_shape: Sequence[int], hidden: Sequence[int]) -> tuple[int, ...]:
    """Return the sizes of the input and of every layer."""
    if not hidden or any(units < 1 for units in hidden):
        raise ValueError(
            f"hidden is {list(hidden)}; it needs at least one layer, each with 1 or more units"
        )
    return flat_size(input_shape), *hidden


class _Column(nn.Module):
    """The layers of one task.

    Each reads the layer before it and, through lateral weights, that of all earlier columns.
    """

    def __init__(self, sizes: Sequence[int], earlier: int) -> None:
        super().__init__()
        self.own = nn.ModuleList([nn.Linear(a, b) for a, b in pairwise(sizes)])
        # the first layer reads the input, which all columns share
        self.laterals = nn.ModuleList(
            [nn.Linear(earlier * a, b, bias=False) for a, b in pairwise(sizes[1:])]
            if earlier
            else []
        )

    def forward(self, x: Tensor, others: Sequence[Sequence[Tensor]], count: int) -> list[Tensor]:
        """Return the activations of the first `count` layers, (R, h_i) each.

        Args:
            x: Inputs (R, inputs).
            others: Activations of the layers of each earlier column.
            count: Number of layers to compute.
        """
        hidden: list[Tensor] = []
        for i, layer in enumerate(self.own[:count]):
            z = layer(hidden[-1] if hidden else x)
            if i and len(self.laterals):
                z = z + self.laterals[i - 1](torch.cat([layers[i - 1] for layers in others], dim=1))
            hidden.append(F.relu(z))
        return hidden


class ProgressiveMLP(nn.Module):
    """Columns of fully connected ReLU layers on the flattened image, one column per task.

        h_i^k = relu(W_i^k h_(i-1)^k + sum_(j < k) U_i^(k:j) h_(i-1)^j)    (Rusu et al. 2016, eq. 1)

    With one column it is the MLP of the same sizes. The strategy `progressive` adds columns and
    selects one of them.

    Args:
        input_shape: Shape of one example.
        hidden: Units of each layer, at least one layer.

    Attributes:
        column: Index of the column in use.
        size: Number of features.

    Raises:
        ValueError: If there are no layers, or one has no units.
    """

    def __init__(self, input_shape: Sequence[int], hidden: Sequence[int] = (400, 400)) -> None:
        super().__init__()
        self.sizes = _sizes(input_shape, hidden)
        self.size = self.sizes[-1]
        self.columns = nn.ModuleList([_Column(self.sizes, 0)])
        self.column = 0

    def add_column(self) -> nn.Module:
        """Add a column that reads all earlier ones, use it from now on, and return it."""
        like = next(self.parameters())
        self.columns.append(_Column(self.sizes, len(self.columns)).to(like.device, like.dtype))
        self.column = len(self.columns) - 1
        return self.columns[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Return features (R, size) of x, uint8 (R, ...), from the column in use."""
        x = pixels_to_1(x, precision(self))
        layers: list[list[Tensor]] = []
        depth = len(self.sizes) - 1
        for column in self.columns[: self.column]:
            layers.append(column(x, layers, depth - 1))  # no column reads another's last layer
        features: Tensor = self.columns[self.column](x, layers, depth)[-1]
        return features


class GrowingMLP(nn.Module):
    """Fully connected ReLU layers on the flattened image, with branches that are added later.

        features = relu(z(x) + sum over branches of V relu(U x + u))

    z is the last layer before its activation. V is initially 0, so a new branch changes nothing
    until it has learned. The strategy `growth` adds branches.

    Args:
        input_shape: Shape of one example.
        hidden: Units of each layer, at least one layer.

    Attributes:
        size: Number of features.

    Raises:
        ValueError: If there are no layers, or one has no units.
    """

    def __init__(self, input_shape: Sequence[int], hidden: Sequence[int] = (400, 400)) -> None:
        super().__init__()
        sizes = _sizes(input_shape, hidden)
        self.layers = nn.ModuleList([nn.Linear(a, b) for a, b in pairwise(sizes)])
        self.branches = nn.ModuleList()
        self.inputs = sizes[0]
        self.size = sizes[-1]

    def add_capacity(self, units: int) -> nn.Module:
        """Add a branch with `units` hidden units, 1 or more, and return it.

        Raises:
            ValueError: If `units` is below 1.
        """
        if units < 1:
            raise ValueError(f"units is {units}; it must be 1 or more")
        like = self.layers[0].weight
        assert isinstance(like, Tensor)
        branch = nn.Sequential(
            nn.Linear(self.inputs, units), nn.ReLU(), nn.Linear(units, self.size, bias=False)
        )
        branch.to(like.device, like.dtype)
        nn.init.zeros_(branch[2].weight)  # type: ignore[arg-type]
        self.branches.append(branch)
        return branch

    def forward(self, x: Tensor) -> Tensor:
        """Return features (R, size) of x, uint8 (R, ...)."""
        x = pixels_to_1(x, precision(self))
        h = x
        for layer in self.layers[:-1]:
            h = F.relu(layer(h))
        z: Tensor = self.layers[-1](h)
        for branch in self.branches:
            z = z + branch(x)
        return F.relu(z)
