"""Networks that read token ids, padded with 0: an embedding, and any Hugging Face transformer."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from einops import einsum
from torch import Tensor, nn


class EmbeddingEncoder(nn.Module):
    """The mean of a text's token embeddings, without padding, and a hidden layer.

    Args:
        vocabulary: Token ids are from 0, the padding, to vocabulary - 1; 2 or more.
        size: Number of features, 1 or more.
        per_token: Whether to return features of every token instead, computed from its embedding
            and those of the two tokens on either side.

    Raises:
        ValueError: If the vocabulary is below 2 or the size below 1.
    """

    NEIGHBOURS = 2

    def __init__(self, vocabulary: int, size: int = 128, per_token: bool = False) -> None:
        super().__init__()
        for name, value, least in (("vocabulary", vocabulary, 2), ("size", size, 1)):
            if value < least:
                raise ValueError(f"{name} is {value}; it must be {least} or more")
        self.size = size
        self.per_token = per_token
        self.embedding = nn.Embedding(vocabulary, size, padding_idx=0)
        inputs = size * (2 * self.NEIGHBOURS + 1) if per_token else size
        self.hidden = nn.Sequential(nn.Linear(inputs, size), nn.ReLU())

    def forward(self, tokens: Tensor) -> Tensor:
        """Return features (R, size), or (R, L, size) per token, of integer token ids (R, L)."""
        embedded = self.embedding(tokens.long())
        inputs = (
            _windows(embedded, self.NEIGHBOURS) if self.per_token else _mean(embedded, tokens > 0)
        )
        features: Tensor = self.hidden(inputs)
        return features


class TransformerEncoder(nn.Module):
    """The mean of a transformer's last hidden states, without padding (extra `text`).

    It reads the token ids of a `PretrainedTokenizer`. Of an encoder-decoder, such as T5, it is the
    encoder.

    Args:
        checkpoint: A local folder or a Hub id such as bert-base-uncased, whose weights are loaded;
            or a configuration (`transformers.PretrainedConfig`), whose weights are drawn.
        per_token: Whether to return the hidden state of every token instead of the mean.

    Attributes:
        size: Number of features.

    Raises:
        ValueError: If the checkpoint cannot be loaded.
        ImportError: If the extra `text` is not installed.
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
                # the user's own choice of a folder or of a model on the Hub
                self.transformer: Any = AutoModel.from_pretrained(  # nosec B615
                    str(checkpoint), dtype=torch.float32
                )
            except (OSError, ValueError) as error:
                raise ValueError(
                    f"transformer {checkpoint} can't be loaded; give a folder or a Hub id that has "
                    "one"
                ) from error
        else:
            self.transformer = AutoModel.from_config(copy.deepcopy(checkpoint))  # type: ignore[no-untyped-call]
        if self.transformer.config.is_encoder_decoder:
            self.transformer = self.transformer.get_encoder()
        self.transformer.train()
        self.size = int(self.transformer.config.hidden_size)
        self.per_token = per_token
        self.padding = int(getattr(self.transformer.config, "pad_token_id", None) or 0)

    @property
    def checkpointing(self) -> bool:
        """Whether the backward pass recomputes activations; no effect if it is not supported."""
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
        """Return features (R, size), or (R, L, size) per token, of integer token ids (R, L)."""
        present = tokens > 0
        ids = torch.where(present, tokens.long() - 1, self.padding)  # the checkpoint counts from 0
        output = self.transformer(input_ids=ids, attention_mask=present.long())
        hidden: Tensor = output.last_hidden_state
        return hidden if self.per_token else _mean(hidden, present)


def _mean(x: Tensor, present: Tensor) -> Tensor:
    """Return the mean (R, D) of x (R, L, D) over the positions present (R, L); 0 if none is."""
    total = einsum(x, present.to(x.dtype), "r l d, r l -> r d")
    return total / present.sum(1, keepdim=True).clamp(min=1)


def _windows(x: Tensor, neighbours: int) -> Tensor:
    """Join each position of x (R, L, D) with its neighbours, 0 beyond the ends.

    Returns:
        (R, L, (2 * neighbours + 1) * D).
    """
    length = x.shape[1]
    padded = nn.functional.pad(x, (0, 0, neighbours, neighbours))
    return torch.cat([padded[:, i : i + length] for i in range(2 * neighbours + 1)], dim=-1)
