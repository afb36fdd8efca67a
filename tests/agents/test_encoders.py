"""Encoders turn an image or a vector into one token, each example by itself."""

import pytest
import torch
from network_helpers import images

from everloop.agents import ImageEncoder, VectorEncoder

SHAPES = [
    (1, 1, 1),
    (3, 3, 2),
    (7, 7, 3),
    (7, 100, 1),
    (8, 8, 1),
    (28, 28, 1),
    (32, 32, 3),
    (9, 33, 2),
    (64, 8, 4),
    (17, 17, 1),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_an_image_becomes_one_token_that_depends_on_every_pixel(shape: tuple[int, ...]) -> None:
    """Also in the corners when strides do not divide the sides."""
    torch.manual_seed(0)
    encoder = ImageEncoder(shape, 16, channels=8)
    x = images(3, *shape)
    tokens = encoder(x)
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
        other = x.clone()
        other[(slice(None), *pixel)] ^= 255
        assert (encoder(other) != tokens).any(dim=-1).all(), pixel


@pytest.mark.parametrize("shape", [(8, 8, 1), (9, 33, 2)])
def test_an_image_is_encoded_independently_of_the_batch(shape: tuple[int, ...]) -> None:
    """Also in training mode: there are no batch statistics."""
    encoder = ImageEncoder(shape, 16).train()
    x = images(4, *shape)
    alone = torch.cat([encoder(image[None]) for image in x])
    torch.testing.assert_close(encoder(x), alone, rtol=1e-4, atol=1e-5)


def test_sides_are_halved_until_both_are_at_most_4() -> None:
    for sides, halvings in (
        ((3, 4), 0),
        ((7, 7), 1),
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


@pytest.mark.parametrize("shape", [(8, 8), (2, 8, 8, 1)])
def test_a_shape_that_is_not_an_image_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(
        ValueError,
        match=rf"image shape is \({', '.join(map(str, shape))}\); it must be .*channels",
    ):
        ImageEncoder(shape, 16)


def test_a_vector_becomes_one_token_through_one_hidden_layer() -> None:
    encoder = VectorEncoder(5, 6)
    x = torch.randn(4, 5)
    first, _, second = encoder.layers
    expected = torch.tanh(x @ first.weight.T + first.bias) @ second.weight.T + second.bias
    tokens = encoder(x)
    assert tokens.shape == (4, 1, 6)
    torch.testing.assert_close(tokens[:, 0], expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(encoder(x.double()), tokens)
