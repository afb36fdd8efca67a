"""Cross-attention between the tokens of different modalities."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class CrossAttention(nn.Module):
    """Every modality's token asks all present ones; the answers are added to it and averaged.

        z' = z + W_o softmax(q k^T / sqrt(d)) v,    q, k, v = W LayerNorm(z)
        features = mean over present tokens of LayerNorm(z')

    Vaswani et al. 2017, section 3.2, with pre-normalisation. A token that is absent is neither
    asked nor averaged. Raises ValueError unless `heads` divides `token_size`.
    """

    def __init__(self, token_size: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or token_size % heads:
            raise ValueError(f"heads is {heads}, allowed: a divisor of token_size = {token_size}")
        self.heads = heads
        self.norm = nn.LayerNorm(token_size)
        self.query_key_value = nn.Linear(token_size, 3 * token_size)
        self.out = nn.Linear(token_size, token_size)
        self.final_norm = nn.LayerNorm(token_size)

    def forward(self, tokens: Tensor, present: Tensor | None = None) -> Tensor:
        """tokens (R, N, D), present bool (R, N) or None for all -> features (R, D).

        A row without any present token gives zeros.
        """
        qkv = self.query_key_value(self.norm(tokens))
        q, k, v = rearrange(qkv, "r n (three h d) -> three r h n d", three=3, h=self.heads)
        mask = None if present is None else rearrange(present, "r n -> r 1 1 n")
        if (
            mask is not None
        ):  # a softmax over nothing is nan: let such rows attend, their average drops them
            mask = mask | ~mask.any(-1, keepdim=True)
        answer = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        tokens = self.final_norm(tokens + self.out(rearrange(answer, "r h n d -> r n (h d)")))
        if present is None:
            return tokens.mean(1)
        weight = rearrange(present, "r n -> r n 1").to(tokens.dtype)
        return (tokens * weight).sum(1) / torch.clamp(weight.sum(1), min=1.0)
