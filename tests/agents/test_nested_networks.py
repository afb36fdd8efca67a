"""Continuum memories and the nested network: equations, levels, sizes and features."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from network_helpers import gradients_and_saved, images
from torch import nn

from everloop.agents import ContinuumMemory, NestedConvNet


@pytest.mark.parametrize(("width", "millions"), [(32, 5), (64, 20), (128, 80)])
def test_the_networks_have_5_20_and_80_million_weights(width: int, millions: int) -> None:
    with torch.device("meta"):
        count = sum(p.numel() for p in NestedConvNet((32, 32, 3), width).parameters())
    assert abs(count / (millions * 1e6) - 1) < 0.1


def test_a_memory_of_perceptrons_computes_its_equation() -> None:
    torch.manual_seed(0)
    memory, x = ContinuumMemory(6, periods=(1, 4, 16), expansion=3), torch.randn(5, 6)
    y = x
    for block in memory.blocks:
        norm, first, _, second = block  # type: ignore[misc]
        h = F.layer_norm(y, (6,), norm.weight, norm.bias)
        y = y + F.gelu(h @ first.weight.T + first.bias) @ second.weight.T + second.bias
        assert first.weight.shape == (18, 6)
    torch.testing.assert_close(memory(x), y)


def test_a_memory_of_convolutions_computes_its_equation() -> None:
    torch.manual_seed(0)
    memory, x = ContinuumMemory(8, periods=(1, 2), convolutional=True), torch.randn(2, 8, 5, 4)
    y = x
    for block in memory.blocks:
        norm, _, convolution = block  # type: ignore[misc]
        h = F.gelu(F.group_norm(y, norm.num_groups, norm.weight, norm.bias))
        y = y + F.conv2d(h, convolution.weight, convolution.bias, padding=1)
    torch.testing.assert_close(memory(x), y)


def test_each_level_has_all_memories_blocks_of_its_period() -> None:
    net = NestedConvNet((16, 16, 3), 8, periods=(1, 10, 100))
    memories = [module for module in net.modules() if isinstance(module, ContinuumMemory)]
    assert len(memories) == 5
    levels = net.levels()
    assert list(levels) == [1, 10, 100]
    for k, period in enumerate((1, 10, 100)):
        expected = {p for memory in memories for p in memory.blocks[k].parameters()}
        assert set(levels[period]) == expected
        assert len(levels[period]) == len(expected)
    outside = set(net.parameters()) - {p for level in levels.values() for p in level}
    convolutions = {
        p for layer in net.stages if isinstance(layer, nn.Conv2d) for p in layer.parameters()
    }
    assert convolutions < outside


@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 32, 3), (8, 14, 3)])
def test_features_of_an_image_do_not_depend_on_the_others(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    net = NestedConvNet(shape, 8)
    x = images(3, *shape)
    features = net(x)
    assert features.shape == (3, 64) == (3, net.size)
    other = x.clone()
    other[1:] = 255 - other[1:]
    torch.testing.assert_close(net(other)[0], features[0])
    assert not torch.allclose(net(other)[1], features[1])


def test_recomputing_saves_fewer_activations_and_changes_no_gradient() -> None:
    results = []
    for recompute in (False, True):
        torch.manual_seed(0)
        net = NestedConvNet((16, 16, 3), 8)
        for memory in net.modules():
            if isinstance(memory, ContinuumMemory):
                memory.checkpointing = recompute
        results.append(gradients_and_saved(net, images(4, 16, 16, 3)))
    (gradients, saved), (recomputed_gradients, recomputed_saved) = results
    assert all(torch.equal(a, b) for a, b in zip(gradients, recomputed_gradients, strict=True))
    assert recomputed_saved < 0.7 * saved


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (
            lambda: ContinuumMemory(4, periods=()),
            r"^periods is \[\]; it must hold at least one, each 1 or more$",
        ),
        (
            lambda: ContinuumMemory(4, periods=(1, 0)),
            r"^periods is \[1, 0\]; it must hold at least one, each 1 or more$",
        ),
        (lambda: NestedConvNet((8, 8, 1), 0), "^width is 0; it must be 1 or more$"),
    ],
)
def test_bad_periods_or_widths_are_refused(make: Any, line: str) -> None:
    with pytest.raises(ValueError, match=line):
        make()
