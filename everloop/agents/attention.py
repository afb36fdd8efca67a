"""Cross-attention between the tokens of different modalities."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class CrossAttention(nn.Module):
    """Every modality's token attends to all present ones; the results are averaged.

        z' = z + W_o softmax(q k^T / sqrt(d)) v,    q, k, v = W LayerNorm(z)
        features = mean over present tokens of LayerNorm(z')

    Source: Vaswani et al. 2017, section 3.2, with pre-normalisation. An absent token is neither
    attended to nor averaged.

    Args:
        token_size: Size of a token, D.
        heads: Number of attention heads, a divisor of `token_size`.

    Raises:
        ValueError: Unless `heads` divides `token_size`.
    """

    def __init__(self, token_size: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or token_size % heads:
            raise ValueError(f"heads is {heads}; it must divide token_size, {token_size}")
        self.heads = heads
        self.norm = nn.LayerNorm(token_size)
        self.query_key_value = nn.Linear(token_size, 3 * token_size)
        self.out = nn.Linear(token_size, token_size)
        self.final_norm = nn.LayerNorm(token_size)

    def forward(self, tokens: Tensor, present: Tensor | None = None) -> Tensor:
        """Return the features of each row.

        Args:
            tokens: (R, N, D).
            present: Which tokens are present, bool (R, N); None means all.

        Returns:
            Features (R, D), 0 in a row without any present token.
        """
        qkv = self.query_key_value(self.norm(tokens))
        q, k, v = rearrange(qkv, "r n (three h d) -> three r h n d", three=3, h=self.heads)
        mask = None
        if present is not None:
            mask = rearrange(present, "r n -> r 1 1 n")
            # a softmax over nothing is nan; the average below drops rows without any token
            mask = mask | ~mask.any(-1, keepdim=True)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        tokens = self.final_norm(tokens + self.out(rearrange(attended, "r h n d -> r n (h d)")))
        if present is None:
            return tokens.mean(1)
        weight = rearrange(present, "r n -> r n 1").to(tokens.dtype)
        return (tokens * weight).sum(1) / torch.clamp(weight.sum(1), min=1.0)
