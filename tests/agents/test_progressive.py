"""Networks with columns, and networks that grow."""

from __future__ import annotations

import pytest
import torch

from everloop.agents import MLP, GrowingMLP, ProgressiveMLP


def test_progressive_columns_are_the_papers_equation() -> None:
    torch.manual_seed(0)
    net = ProgressiveMLP((2, 2, 1), (3, 5))
    x = torch.randint(256, (7, 2, 2, 1), dtype=torch.uint8)
    plain = MLP((2, 2, 1), (3, 5))
    plain.load_state_dict(
        {
            f"layers.{2 * i}.{p}": getattr(net.columns[0].own[i], p)
            for i in range(2)
            for p in ("weight", "bias")
        }
    )
    torch.testing.assert_close(net(x), plain(x))
    net.add_column()
    net.add_column()
    rows, (a, b, c) = x.flatten(1).float() / 255, net.columns
    first = [torch.relu(column.own[0](rows)) for column in (a, b, c)]
    U = c.laterals[0].weight.split(3, dim=1)
    expected = torch.relu(c.own[1](first[2]) + first[0] @ U[0].T + first[1] @ U[1].T)
    torch.testing.assert_close(net(x), expected)
    assert net.column == 2
    net.column = 0
    torch.testing.assert_close(net(x), plain(x))


def test_laterals_read_the_layer_before_their_own() -> None:
    """Eq. 1 with three hidden layers of the same size, and so two layers with laterals."""
    torch.manual_seed(0)
    net = ProgressiveMLP((2, 2, 1), (3, 3, 3))
    x = torch.randint(256, (7, 2, 2, 1), dtype=torch.uint8)
    net.add_column()
    a, b = net.columns
    h_a = h_b = x.flatten(1).float() / 255
    for i in range(3):
        lateral = h_a @ b.laterals[i - 1].weight.T if i else 0.0
        h_a, h_b = torch.relu(a.own[i](h_a)), torch.relu(b.own[i](h_b) + lateral)
    torch.testing.assert_close(net(x), h_b)


def test_networks_without_units_are_refused() -> None:
    for network in (ProgressiveMLP, GrowingMLP):
        with pytest.raises(ValueError, match="hidden is"):
            network((8, 8, 1), ())
        with pytest.raises(ValueError, match="hidden is"):
            network((8, 8, 1), (3, 0))
    with pytest.raises(ValueError, match=r"^units is 0; it must be 1 or more$"):
        GrowingMLP((8, 8, 1)).add_capacity(0)
