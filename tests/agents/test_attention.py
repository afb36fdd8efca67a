"""`CrossAttention` is the softmax attention of its docstring and ignores absent tokens."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from network_helpers import boolean_rows
from torch import Tensor

from everloop.agents import CrossAttention

D = 8
shapes = st.tuples(st.integers(1, 4), st.integers(1, 5))


def attention(heads: int = 2) -> CrossAttention:
    """Return a layer with random norms, so that they are not the identity."""
    torch.manual_seed(0)
    layer = CrossAttention(D, heads)
    with torch.no_grad():
        for norm in (layer.norm, layer.final_norm):
            norm.weight.normal_()
            norm.bias.normal_()
    return layer


def by_hand(layer: CrossAttention, tokens: Tensor) -> Tensor:
    """Return features (D,) of tokens (N, D), head by head and token by token."""
    W, b = layer.query_key_value.weight, layer.query_key_value.bias
    d = D // layer.heads
    normed = layer.norm(tokens)
    heads = []
    for h in range(layer.heads):
        q, k, v = (
            normed @ W[part * D + h * d : part * D + (h + 1) * d].T
            + b[part * D + h * d : part * D + (h + 1) * d]
            for part in range(3)
        )
        scores = torch.stack(
            [
                torch.stack([(q[i] * k[j]).sum() / d**0.5 for j in range(len(k))])
                for i in range(len(q))
            ]
        )
        weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
        heads.append(weights @ v)
    answer = torch.cat(heads, dim=-1) @ layer.out.weight.T + layer.out.bias
    return layer.final_norm(tokens + answer).mean(0)


@given(shapes, st.sampled_from([1, 2, 4, 8]), st.integers(0, 99))
@settings(deadline=None, max_examples=25)
def test_features_agree_with_the_formula(shape: tuple[int, int], heads: int, seed: int) -> None:
    layer = attention(heads)
    torch.manual_seed(seed)
    tokens = torch.randn(*shape, D)
    expected = torch.stack([by_hand(layer, row) for row in tokens])
    torch.testing.assert_close(layer(tokens), expected, rtol=1e-4, atol=1e-5)


@given(boolean_rows(4), st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_absent_tokens_change_neither_features_nor_gradients(
    rows: list[list[bool]], seed: int
) -> None:
    """The features are those of the present tokens alone, or zeros without any."""
    layer = attention()
    torch.manual_seed(seed)
    present = torch.tensor(rows)
    tokens = torch.randn(*present.shape, D, requires_grad=True)
    features = layer(tokens, present)
    for row, there, feature in zip(tokens, present, features, strict=True):
        expected = layer(row[there][None])[0] if there.any() else torch.zeros(D)
        torch.testing.assert_close(feature, expected, rtol=1e-4, atol=1e-5)
    changed = torch.where(present[..., None], tokens, 100 * torch.randn_like(tokens))
    assert torch.equal(layer(changed, present), features)
    found = torch.autograd.grad(
        (features * torch.randn_like(features)).sum(), [tokens, *layer.parameters()]
    )
    assert all(gradient.isfinite().all() for gradient in found)
    assert not found[0][~present].any()
    assert found[0][present].any() == present.any()


def test_a_row_without_tokens_has_zero_features_and_finite_gradients() -> None:
    layer = attention()
    tokens = torch.randn(2, 3, D, requires_grad=True)
    features = layer(tokens, torch.tensor([[False] * 3, [True, False, True]]))
    assert not features[0].any()
    features.sum().backward()
    assert tokens.grad is not None
    assert not tokens.grad[0].any()
    for parameter in layer.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()


@given(boolean_rows(4), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=25)
def test_the_order_of_the_tokens_does_not_matter(rows: list[list[bool]], random: object) -> None:
    layer = attention()
    present = torch.tensor(rows)
    tokens = torch.randn(*present.shape, D)
    order = list(range(present.shape[1]))
    random.shuffle(order)  # type: ignore[attr-defined]
    torch.testing.assert_close(
        layer(tokens[:, order], present[:, order]), layer(tokens, present), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(layer(tokens[:, order]), layer(tokens), rtol=1e-4, atol=1e-5)


def test_a_mask_of_ones_equals_no_mask() -> None:
    tokens = torch.randn(4, 3, D)
    torch.testing.assert_close(
        attention()(tokens, torch.ones(4, 3, dtype=torch.bool)),
        attention()(tokens),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize("heads", [3, 5, 16])
def test_heads_that_do_not_divide_the_token_size_are_refused(heads: int) -> None:
    with pytest.raises(ValueError, match=f"heads is {heads}; it must divide token_size, 8"):
        CrossAttention(D, heads)


def test_zero_heads_are_refused() -> None:
    with pytest.raises(ValueError, match="heads is 0"):
        CrossAttention(D, 0)
