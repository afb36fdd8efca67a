"""Networks that read token ids, 0 where a text is over: an embedding, and any Hugging Face
transformer.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from einops import einsum
from torch import Tensor, nn


class EmbeddingEncoder(nn.Module):
    """Token ids (R, L) -> features (R, size): the mean of the tokens' embeddings, and a hidden
    layer; padding counts nothing.

    per_token: (R, L, size) instead, where each token's feature comes from its embedding and those
        of the two tokens on either side.
    Raises ValueError for a vocabulary below 2 and a size below 1.
    """

    NEIGHBOURS = 2

    def __init__(self, vocabulary: int, size: int = 128, per_token: bool = False) -> None:
        super().__init__()
        for name, value, least in (("vocabulary", vocabulary, 2), ("size", size, 1)):
            if value < least:
                raise ValueError(f"{name} is {value}, allowed: {least} or more")
        self.size, self.per_token = size, per_token
        self.embedding = nn.Embedding(vocabulary, size, padding_idx=0)
        inputs = size * (2 * self.NEIGHBOURS + 1) if per_token else size
        self.hidden = nn.Sequential(nn.Linear(inputs, size), nn.ReLU())

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (R, L), integers -> (R, size) or (R, L, size)."""
        embedded = self.embedding(tokens.long())
        features: Tensor = self.hidden(
            _windows(embedded, self.NEIGHBOURS) if self.per_token else _mean(embedded, tokens > 0)
        )
        return features


class TransformerEncoder(nn.Module):
    """Token ids (R, L) of a `PretrainedTokenizer` -> features (R, size): the mean of the last
    hidden states, padding left out.

    checkpoint: a local folder or a Hub id such as bert-base-uncased, whose weights are loaded; or a
        configuration (`transformers.PretrainedConfig`), whose weights are drawn. Needs the extra
        `text`.
    per_token: the hidden states themselves, (R, L, size).
    checkpointing: recompute activations on the way back, where the transformer can.
    Raises ValueError for a checkpoint that can't be loaded.
    """

    def __init__(self, checkpoint: Any, per_token: bool = False) -> None:
        super().__init__()
        try:
            from transformers import AutoModel
        except ModuleNotFoundError:
            raise ImportError(
                'a transformer needs the package transformers: pip install "everloop[text]"'
            ) from None
        if isinstance(checkpoint, str | Path):
            try:
                self.transformer: Any = AutoModel.from_pretrained(
                    str(checkpoint), dtype=torch.float32
                )
            except (OSError, ValueError) as error:
                raise ValueError(
                    f"transformer {checkpoint} can't be loaded, allowed: a folder or an id of the "
                    "Hub that has one"
                ) from error
        else:
            self.transformer = AutoModel.from_config(copy.deepcopy(checkpoint))  # type: ignore[no-untyped-call]
        self.transformer.train()
        self.size, self.per_token = int(self.transformer.config.hidden_size), per_token
        self.padding = int(getattr(self.transformer.config, "pad_token_id", None) or 0)

    @property
    def checkpointing(self) -> bool:
        """Whether activations are recomputed."""
        return any(
            getattr(layer, "gradient_checkpointing", False) for layer in self.transformer.modules()
        )

    @checkpointing.setter
    def checkpointing(self, on: bool) -> None:
        if on and self.transformer.supports_gradient_checkpointing:
            self.transformer.activation_checkpointing_enable()
        elif self.checkpointing:
            self.transformer.activation_checkpointing_disable()

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (R, L), integers -> (R, size) or (R, L, size)."""
        there = tokens > 0
        own = torch.where(there, tokens.long() - 1, self.padding)  # its ids begin at 0, ours at 1
        hidden: Tensor = self.transformer(
            input_ids=own, attention_mask=there.long()
        ).last_hidden_state
        return hidden if self.per_token else _mean(hidden, there)


def _mean(x: Tensor, there: Tensor) -> Tensor:
    """Mean of x (R, L, D) over the positions that are there (R, L); 0 where none is."""
    total = einsum(x, there.to(x.dtype), "r l d, r l -> r d")
    return total / there.sum(1, keepdim=True).clamp(min=1)


def _windows(x: Tensor, neighbours: int) -> Tensor:
    """x (R, L, D) -> (R, L, (2 * neighbours + 1) * D): each position beside its neighbours, zeros
    beyond the ends.
    """
    length = x.shape[1]
    padded = nn.functional.pad(x, (0, 0, neighbours, neighbours))
    return torch.cat([padded[:, i : i + length] for i in range(2 * neighbours + 1)], dim=-1)
