"""The network of vectors: its layers, and its statistics, which only training changes."""

import pytest
import torch

from everloop.agents import FeatureMLP


def test_features_are_layers_on_the_normalised_vector() -> None:
    net = FeatureMLP(3, [5])
    x = torch.randn(40, 1, 3) * torch.tensor([1.0, 50.0, 0.1]) + 7
    net.update_statistics({"features": x})
    flat = x.flatten(0, 1)
    scaled = (flat - flat.mean(0)) / flat.std(0, correction=0)
    linear = net.layers[0]
    expected = torch.relu(scaled @ linear.weight.T + linear.bias)
    torch.testing.assert_close(net(flat), expected, rtol=1e-4, atol=1e-4)
    assert net.size == 5


@pytest.mark.parametrize(("normalize", "counted"), [("running", 9), ("first-task", 4)])
def test_statistics_are_of_all_training_or_of_the_first_phase(normalize: str, counted: int) -> None:
    net = FeatureMLP(2, [], normalize)  # type: ignore[arg-type]
    net.update_statistics({"features": torch.randn(2, 2, 2)})
    net(torch.randn(3, 2))
    net.end_first_phase()
    net.update_statistics({"features": torch.randn(1, 5, 2)})
    assert net.norm is not None
    assert net.norm.count == counted


def test_without_normalisation_or_layers_the_features_are_the_numbers() -> None:
    net = FeatureMLP(2, [], "none")
    net.update_statistics({"features": torch.randn(2, 2, 2)})
    x = torch.randn(3, 2)
    torch.testing.assert_close(net(x), x, rtol=0, atol=0)
    assert net.size == 2


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^hidden is \[0\]; each layer needs 1 or more units$"):
        FeatureMLP(2, [0])
    with pytest.raises(ValueError, match=r"^normalize is 'all'; choose none, running, first-task$"):
        FeatureMLP(2, normalize="all")  # type: ignore[arg-type]
