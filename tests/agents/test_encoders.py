"""Every modality becomes one token, an example at a time."""

import pytest
import torch
from torch import Tensor

from everloop.agents import ImageEncoder, VectorEncoder

SHAPES = [(8, 8, 1), (28, 28, 1), (32, 32, 3), (9, 33, 2), (64, 8, 4), (17, 17, 1)]


def pictures(rows: int, shape: tuple[int, ...]) -> Tensor:
    return torch.randint(0, 256, (rows, *shape), dtype=torch.uint8)


@pytest.mark.parametrize("shape", SHAPES)
def test_an_image_becomes_one_token_that_depends_on_every_pixel(shape: tuple[int, ...]) -> None:
    """Otherwise a corner would be lost where strides do not divide the sides."""
    torch.manual_seed(0)
    encoder = ImageEncoder(shape, 16, channels=8)
    images = pictures(3, shape)
    tokens = encoder(images)
    assert tokens.shape == (3, 1, 16)
    assert tokens.isfinite().all()
    height, width, depth = shape
    for pixel in [
        (0, 0, 0),
        (height - 1, width - 1, depth - 1),
        (0, width - 1, 0),
        (height - 1, 0, 0),
        (height // 2, width // 2, 0),
    ]:
        other = images.clone()
        other[(slice(None), *pixel)] ^= 255
        assert (encoder(other) != tokens).any(dim=-1).all(), pixel


@pytest.mark.parametrize("shape", [(8, 8, 1), (9, 33, 2)])
def test_an_example_is_encoded_as_if_it_were_alone(shape: tuple[int, ...]) -> None:
    """In training mode too: no batch statistics."""
    encoder = ImageEncoder(shape, 16).train()
    images = pictures(4, shape)
    torch.testing.assert_close(
        encoder(images), torch.cat([encoder(image[None]) for image in images]), rtol=1e-4, atol=1e-5
    )


def test_the_smaller_an_image_the_fewer_halvings() -> None:
    """Sides are halved until both are at most 4: one halving for 8, three for 28 and 32, four where
    one side is 64.
    """
    for sides, halvings in (
        ((8, 8), 1),
        ((16, 16), 2),
        ((28, 28), 3),
        ((32, 32), 3),
        ((8, 64), 4),
        ((64, 8), 4),
    ):
        strides = [
            layer.stride
            for layer in ImageEncoder((*sides, 1), 8, channels=1).convolutions
            if hasattr(layer, "stride")
        ]
        assert strides == [(1, 1)] + [(2, 2)] * halvings


@pytest.mark.parametrize("shape", [(7, 8, 1), (8, 7, 3), (1, 100, 1), (8, 8), (2, 8, 8, 1)])
def test_a_shape_that_is_no_image_or_too_small_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(
        ValueError,
        match=rf"image shape is \({', '.join(map(str, shape))}\); it must be .* of 8 or more",
    ):
        ImageEncoder(shape, 16)


def test_a_vector_becomes_one_token_by_one_hidden_layer() -> None:
    encoder = VectorEncoder(5, 6)
    x = torch.randn(4, 5)
    first, _, second = encoder.layers
    expected = torch.tanh(x @ first.weight.T + first.bias) @ second.weight.T + second.bias
    tokens = encoder(x)
    assert tokens.shape == (4, 1, 6)
    torch.testing.assert_close(tokens[:, 0], expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(encoder(x.double()), tokens)
