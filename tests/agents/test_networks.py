"""The image networks of published tables: sizes, shapes, normalisation, heads and freezing."""

from typing import Any

import pytest
import torch
from gymnasium import spaces
from network_helpers import first_predictions, gradients_and_saved, images
from torch import Tensor, nn

from everloop.agents import (
    MLP,
    Agent,
    Classifier,
    ConvNet5,
    GrowingMLP,
    NestedConvNet,
    ProgressiveMLP,
    ResNet18,
)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("backbone", "classes", "published"),
    [
        (MLP((28, 28, 1), (400, 400)), 10, 784 * 400 + 400 + 400 * 400 + 400 + 4010),  # 478,410
        (MLP((28, 28, 1), (1000, 1000)), 10, 784_000 + 1000 + 1_001_000 + 10_010),
        (MLP((28, 28, 1), ()), 10, 7850),
        # the reduced ResNet-18 of online continual learning
        (ResNet18((32, 32, 3), 20), 100, 1_109_240),
        (ResNet18((32, 32, 3), 64), 100, 11_220_132),
        (ResNet18((32, 32, 3), 64), 10, 11_173_962),
        # convolutions without bias and batch norm, then 1024 -> 2000 -> 2000
        (ConvNet5((32, 32, 3)), 100, 9 * 43_568 + 2 * 496 + 1025 * 2000 + 2001 * 2000 + 200_100),
    ],
)
def test_networks_have_the_published_number_of_weights(
    backbone: Any, classes: int, published: int
) -> None:
    assert count(Classifier(backbone, classes)) == published


@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 32, 3), (9, 14, 3)])
@pytest.mark.parametrize("network", [MLP, ResNet18, ConvNet5])
def test_any_image_size_gives_features_of_the_stated_size(
    network: Any, shape: tuple[int, ...]
) -> None:
    net = network(shape)
    assert net(images(3, *shape)).shape == (3, net.size)


@pytest.mark.parametrize("network", [MLP, ResNet18, ConvNet5, ProgressiveMLP, GrowingMLP])
def test_float_images_give_the_same_features_and_are_not_changed(network: Any) -> None:
    x = images(3, 8, 8, 3)
    floats, net = x.float(), network((8, 8, 3)).eval()
    assert torch.equal(net(floats), net(x))
    assert torch.equal(floats, x.float())


def test_whiter_pixels_are_larger_first_weights() -> None:
    torch.manual_seed(0)
    net, unscaled = MLP((8, 8, 1), (7, 5)), MLP((8, 8, 1), (7, 5), white=255.0)
    with torch.no_grad():
        unscaled.load_state_dict(net.state_dict())
        net.layers[0].weight *= 255  # type: ignore[operator]
    torch.testing.assert_close(unscaled(images(3, 8, 8, 1)), net(images(3, 8, 8, 1)))


@pytest.mark.parametrize(
    "network", [MLP, ResNet18, ConvNet5, ProgressiveMLP, GrowingMLP, NestedConvNet]
)
def test_features_have_the_precision_of_the_weights(network: Any) -> None:
    x, net = images(3, 16, 16, 3), network((16, 16, 3)).eval()
    single, double = net(x), net.double()(x)
    assert double.dtype == torch.float64
    assert 0 < (single - double).abs().max() < 1e-4


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_only_batch_norm_lets_one_image_change_anothers_features(norm: Any) -> None:
    torch.manual_seed(0)
    net = ResNet18((16, 16, 3), 8, norm)
    a, b = images(4, 16, 16, 3), images(4, 16, 16, 3)
    b[1:] = 255 - b[1:]
    same = torch.allclose(net(a)[0], net(b)[0], atol=1e-5)
    assert same == (norm == "group")
    net.eval()
    torch.testing.assert_close(net(a)[0], net(b)[0])


def test_the_number_of_groups_divides_the_width() -> None:
    net = ResNet18((16, 16, 3), 20, "group")
    groups = [layer.num_groups for layer in net.modules() if isinstance(layer, nn.GroupNorm)]
    assert groups
    assert set(groups) <= {2, 5, 10, 20}


@pytest.mark.parametrize(
    "network", [lambda: ResNet18((16, 16, 3), 8), lambda: ConvNet5((16, 16, 3), (50,))]
)
def test_recomputing_saves_fewer_activations_and_changes_no_gradient(network: Any) -> None:
    results = []
    for recompute in (False, True):
        torch.manual_seed(0)
        net = network()
        net.checkpointing = recompute
        results.append(gradients_and_saved(net, images(4, 16, 16, 3)))
    (gradients, saved), (recomputed_gradients, recomputed_saved) = results
    assert all(torch.equal(a, b) for a, b in zip(gradients, recomputed_gradients, strict=True))
    assert recomputed_saved < 0.6 * saved


def test_training_does_not_change_frozen_convolutions() -> None:
    torch.manual_seed(0)
    trained, net = ConvNet5((16, 16, 3), (20,)), ConvNet5((16, 16, 3), (20,))
    net.freeze_convolutions(trained.convolutions.state_dict())
    before = {name: value.clone() for name, value in net.convolutions.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    net.train()
    for seed in range(3):
        net(images(8, 16, 16, 3, seed=seed)).sum().backward()
        optimizer.step()
    assert all(
        torch.equal(value, before[name]) for name, value in net.convolutions.state_dict().items()
    )
    assert all(
        torch.equal(value, before[name])
        for name, value in trained.convolutions.state_dict().items()
    )
    assert net.layers.training


@pytest.mark.parametrize("T", [1, 3])
def test_a_classifier_is_its_backbone_and_a_linear_head(T: int) -> None:
    net = Classifier(MLP((8, 8, 1), (7,)), 5)
    x = images(T * 4, 8, 8, 1)
    output, state = net(
        {"image": x.view(T, 4, 8, 8, 1)}, net.initial_state(4), torch.ones(T, 4, dtype=torch.bool)
    )
    expected = net.heads.linear(net.backbone(x)).view(T, 4, 5)
    assert torch.equal(output.prediction, expected)
    assert output.value is None
    assert state.shape == (4, 0)


def test_the_cue_selects_the_head_which_alone_is_trained() -> None:
    net = Classifier(MLP((8, 8, 1), (7,)), 5, tasks=3)
    x, task = images(6, 8, 8, 1), torch.tensor([2, 0, 2, 2, 0, 2])
    obs = {"image": x[None], "cue": torch.eye(3)[task][None]}
    prediction = first_predictions(net, obs)
    all_heads = net.heads.linear(net.backbone(x)).view(6, 3, 5)
    assert torch.equal(prediction[0], all_heads[torch.arange(6), task])
    prediction.sum().backward()
    trained = net.heads.linear.weight.grad.view(3, 5, 7).abs().sum((1, 2)) > 0  # type: ignore[union-attr]
    assert trained.tolist() == [True, False, True]
    with pytest.raises(ValueError, match="no modality 'cue', which selects the head"):
        first_predictions(net, {"image": x[None]})


class Tokens(nn.Module):
    """A backbone whose only feature of a token is its id."""

    size = 1

    def forward(self, x: Tensor) -> Tensor:
        return x.float()[..., None]


@pytest.mark.parametrize("tasks", [1, 2])
def test_a_classifier_of_tokens_predicts_for_every_token(tasks: int) -> None:
    net = Classifier(Tokens(), 3, modality="tokens", tasks=tasks)
    ids, task = torch.arange(8).view(1, 2, 4), torch.tensor([1, 0])
    obs = {"tokens": ids, "cue": torch.eye(2)[task][None]}
    prediction = first_predictions(net, obs)
    all_heads = net.heads.linear(ids[0].float()[..., None]).view(2, 4, tasks, 3)
    chosen = all_heads[torch.arange(2), :, task if tasks > 1 else 0]
    assert torch.equal(prediction, chosen.reshape(1, 2, 12))


def test_any_backbone_can_encode_an_agents_modality() -> None:
    space = spaces.Dict(
        {"image": spaces.Box(0, 255, (16, 16, 3), "uint8"), "x": spaces.Box(-1.0, 1.0, (2,))}
    )
    backbone = ResNet18((16, 16, 3), 8)
    agent = Agent(space, 4, recurrent=False, encoders={"image": backbone})
    assert any(module is backbone for module in agent.modules())
    obs = {"image": images(3, 16, 16, 3)[None], "x": torch.zeros(1, 3, 2)}
    assert first_predictions(agent, obs).shape == (1, 3, 4)
    with pytest.raises(
        ValueError, match=r"^encoders has 'sound'; choose from the modalities image, x$"
    ):
        Agent(space, 4, encoders={"sound": backbone})


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: MLP((8, 8, 1), (0,)), r"^hidden is \[0\]; each layer needs 1 or more units$"),
        (lambda: MLP((8, 8, 1), white=0.0), r"^white is 0.0; it must be finite and above 0$"),
        (lambda: ResNet18((8, 8, 1), 0), "^width is 0; it must be 1 or more$"),
        (lambda: ResNet18((8, 8, 1), 8, "layer"), "^norm is 'layer'; choose batch or group$"),  # type: ignore[arg-type]
    ],
)
def test_a_network_with_bad_sizes_or_norm_is_refused(make: Any, line: str) -> None:
    with pytest.raises(ValueError, match=line):
        make()
