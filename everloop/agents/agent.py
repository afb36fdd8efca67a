"""The agent: encoders per modality, cross-attention, a memory, heads.

One class for control and for streams.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from einops import rearrange
from gymnasium import spaces
from torch import Tensor, nn

from everloop.agents.attention import CrossAttention
from everloop.agents.encoders import BackboneEncoder, ImageEncoder, VectorEncoder
from everloop.agents.heads import Heads
from everloop.agents.memory import ResettableGRU
from everloop.agents.text import EmbeddingEncoder
from everloop.contract import CUE, PRESENCE, Output


class Agent(nn.Module):
    """Modality encoders -> cross-attention -> GRU -> heads.

    observation_space: Dict of Box. Images are uint8 (H, W, C), token ids int32 (L,) from 0
        (padding), everything else is flattened. A modality `"presence"` (one float per other
        modality, in the order of the names) masks those that are absent (0) instead of being a
        token.
    prediction_size: P. For actions in a Box it is twice their number (mean and log standard
        deviation of a Gaussian), for discrete actions and classes their number (logits).
    value_head: whether to predict the state's value, for actor-critic learners.
    recurrent: with False the memory is left out and `state` passes through untouched.
    head_per_task: one prediction (and value) head for each entry of the one-hot modality `"cue"`,
        which selects it; for scenarios that tell the task.
    prediction_scale: factor on the prediction head's initial weights; 0.01 makes a first policy
        that ignores what it sees (Andrychowicz et al. 2021, "What matters in on-policy RL", section
        3.2).
    encoders: modality -> backbone, a network with `size` features, in place of the built-in
    encoder. Raises ValueError for spaces it cannot encode and for a head per task without a cue.
    """

    def __init__(
        self,
        observation_space: spaces.Space[object],
        prediction_size: int,
        *,
        value_head: bool = False,
        recurrent: bool = True,
        head_per_task: bool = False,
        token_size: int = 64,
        attention_heads: int = 4,
        hidden_size: int = 64,
        prediction_scale: float = 1.0,
        encoders: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(observation_space, spaces.Dict):
            raise ValueError(
                f"observation space is {observation_space}, allowed: a Dict with one Box per "
                "modality"
            )
        parts = observation_space.spaces
        if head_per_task and CUE not in parts:
            raise ValueError(
                f"head_per_task needs the modality {CUE!r}, the world shows: {', '.join(parts)}"
            )
        self.names = sorted(name for name in parts if name != PRESENCE)
        if not self.names:
            raise ValueError(
                f"observation space is {observation_space}, allowed: at least one modality beside "
                f"{PRESENCE!r}"
            )
        if PRESENCE in parts and parts[PRESENCE].shape != (len(self.names),):
            raise ValueError(
                f"modality {PRESENCE!r} has shape {parts[PRESENCE].shape}, allowed: "
                f"({len(self.names)},)"
            )
        own = dict(encoders or {})
        if stray := sorted(set(own) - set(self.names)):
            raise ValueError(
                f"encoders are given for {stray[0]!r}, allowed: {', '.join(self.names)}"
            )
        self.encoders = nn.ModuleDict(
            {
                _key(name): BackboneEncoder(own[name], token_size)
                if name in own
                else _encoder(name, parts[name], token_size)
                for name in self.names
            }
        )
        self.attention = CrossAttention(token_size, attention_heads)
        self.recurrent, self.hidden_size = recurrent, hidden_size
        self.memory = ResettableGRU(token_size, hidden_size) if recurrent else None
        features = hidden_size if recurrent else token_size
        tasks = _size(parts[CUE]) if head_per_task else 1
        self.head = Heads(features, prediction_size, tasks)
        self.value = Heads(features, 1, tasks) if value_head else None
        with torch.no_grad():
            self.head.linear.weight.mul_(prediction_scale)
            self.head.linear.bias.mul_(prediction_scale)

    def initial_state(self, batch: int) -> Tensor:
        """Zeros (batch, hidden_size) on the agent's device."""
        return self.head.linear.weight.new_zeros(batch, self.hidden_size)

    def forward(
        self, obs: Mapping[str, Tensor], state: Tensor, start: Tensor
    ) -> tuple[Output, Tensor]:
        """obs[m] (T, B, ...), state (B, hidden_size), start bool (T, B) -> Output, state after the
        last step.

        A `start` resets the state before its step. Modalities missing from `obs` count as absent.
        Raises ValueError if none is there.
        """
        T = start.shape[0]
        rows = {name: rearrange(value, "t b ... -> (t b) ...") for name, value in obs.items()}
        features = self.attention(*self._tokens(rows))
        if self.memory is not None:
            hidden, state = self.memory(rearrange(features, "(t b) d -> t b d", t=T), state, start)
            features = rearrange(hidden, "t b d -> (t b) d")
        prediction, heads = self.head(features, rows)
        value = (
            None
            if self.value is None
            else rearrange(self.value(features, rows)[0], "(t b) 1 -> t b", t=T)
        )
        every = None if heads is None else rearrange(heads, "(t b) k p -> t b k p", t=T)
        return Output(rearrange(prediction, "(t b) p -> t b p", t=T), value, every), state

    def _tokens(self, rows: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Tokens (R, N, token_size) of the modalities at hand, and which are present (R, N), None
        for all.
        """
        names = [name for name in self.names if name in rows]
        if not names:
            raise ValueError(
                f"the observation has none of the agent's modalities: {', '.join(self.names)}"
            )
        tokens = torch.cat(
            [self.encoders[_key(name)](_flatten(rows[name])) for name in names], dim=1
        )
        if PRESENCE not in rows:
            return tokens, None
        columns = [self.names.index(name) for name in names]
        return tokens, rows[PRESENCE][:, columns] > 0.5


def _key(name: str) -> str:
    """A modality's name as a module's: torch reserves some names, and dots."""
    return "of_" + name.replace("_", "__").replace(".", "_d")


def _flatten(x: Tensor) -> Tensor:
    """Everything but images and token ids becomes one vector per row."""
    return (
        x
        if (x.dtype == torch.uint8 and x.ndim == 4) or x.ndim == 2
        else rearrange(x, "r ... -> r (...)")
    )


def _size(space: spaces.Space[object]) -> int:
    size = 1
    for side in space.shape or ():
        size *= side
    return size


def _encoder(name: str, space: spaces.Space[object], token_size: int) -> nn.Module:
    if not isinstance(space, spaces.Box):
        raise ValueError(f"modality {name!r} is {space}, allowed: a Box")
    if space.dtype == "uint8" and len(space.shape) == 3:
        return ImageEncoder(space.shape, token_size)
    if space.dtype == "int32" and len(space.shape) == 1 and (space.low == 0).all():
        return BackboneEncoder(EmbeddingEncoder(int(space.high.max()) + 1, token_size), token_size)
    return VectorEncoder(_size(space), token_size)
