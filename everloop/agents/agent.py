"""The agent for control and for streams: encoders, cross-attention, a memory and heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

import torch
from einops import rearrange
from gymnasium import spaces
from torch import Tensor, nn

from everloop.agents.attention import CrossAttention
from everloop.agents.encoders import BackboneEncoder, ImageEncoder, VectorEncoder
from everloop.agents.heads import Heads
from everloop.agents.memory import ResettableGRU
from everloop.agents.normalise import Normalize, RunningNorm
from everloop.agents.text import EmbeddingEncoder
from everloop.contract import CUE, PRESENCE, Output, modality_kind


class Agent(nn.Module):
    """Modality encoders -> cross-attention -> GRU if recurrent -> heads.

    Args:
        observation_space: A Dict of Box. `everloop.contract.modality_kind` says which are pictures,
            uint8 (H, W, C), which are token ids (`everloop.envs.Tokens`), and which are vectors.
            The modality "presence" is no token: it holds one float per other modality, sorted by
            name, and 0 masks an absent one.
        prediction_size: P. For actions in a Box it is twice their number (mean and log standard
            deviation of a Gaussian); for discrete actions and classes it is their number (logits).
        value_head: Whether to predict the state's value, for actor-critic learners.
        recurrent: Whether to have a memory, for RecurrentPPO. Without one `state` is returned
            unchanged.
        head_per_task: Whether to have one prediction head (and value head) per entry of the
            one-hot modality "cue", which selects it; for task-aware scenarios.
        token_size: Size of each modality's token; `attention_heads` must divide it.
        attention_heads: Number of attention heads.
        hidden_size: Size of the state, which only a memory uses.
        prediction_scale: Factor on the prediction head's initial weights and biases. With 0.01
            the first policy hardly depends on the observation (Andrychowicz et al. 2021, "What
            matters in on-policy RL", section 3.2).
        encoders: Modality name -> backbone, a network with `size` features, in place of the
            built-in encoder. It gets the rows (R, ...) as the world returns them.
        normalize: Whether to normalise the vectors that built-in encoders read, except for the
            cue, by their mean and variance in training (`RunningNorm`): "none"; "running", over
            everything seen so far; or "first-task", over the first phase of training only.

    Raises:
        ValueError: If a space cannot be encoded, if an encoder has no modality, if there is a head
            per task but no cue, or if there is nothing to normalise.
    """

    def __init__(
        self,
        observation_space: spaces.Space[object],
        prediction_size: int,
        *,
        value_head: bool = False,
        recurrent: bool = False,
        head_per_task: bool = False,
        token_size: int = 64,
        attention_heads: int = 4,
        hidden_size: int = 64,
        prediction_scale: float = 1.0,
        encoders: Mapping[str, nn.Module] | None = None,
        normalize: Normalize = "none",
    ) -> None:
        super().__init__()
        if not isinstance(observation_space, spaces.Dict):
            raise ValueError(
                f"the observation space is {observation_space}; it must be a Dict with one Box per "
                "modality"
            )
        parts = observation_space.spaces
        if head_per_task and CUE not in parts:
            raise ValueError(
                f"head_per_task needs the modality {CUE!r}; this world has {', '.join(parts)}"
            )
        self.names = sorted(name for name in parts if name != PRESENCE)
        if not self.names:
            raise ValueError(
                f"the observation space is {observation_space}; it needs a modality besides "
                f"{PRESENCE!r}"
            )
        if PRESENCE in parts and parts[PRESENCE].shape != (len(self.names),):
            raise ValueError(
                f"modality {PRESENCE!r} has shape {parts[PRESENCE].shape}; it must be "
                f"({len(self.names)},), one entry per other modality"
            )
        own = dict(encoders or {})
        if stray := sorted(set(own) - set(self.names)):
            raise ValueError(
                f"encoders has {stray[0]!r}; choose from the modalities {', '.join(self.names)}"
            )
        self.encoders = nn.ModuleDict(
            {
                _key(name): BackboneEncoder(own[name], token_size)
                if name in own
                else _encoder(name, parts[name], token_size, normalize != "none")
                for name in self.names
            }
        )
        self.normalize = normalize
        self._check_normalize()
        self.attention = CrossAttention(token_size, attention_heads)
        self.recurrent = recurrent
        self.hidden_size = hidden_size
        self.memory = ResettableGRU(token_size, hidden_size) if recurrent else None
        features = hidden_size if recurrent else token_size
        tasks = _size(parts[CUE]) if head_per_task else 1
        self.head = Heads(features, prediction_size, tasks)
        self.value = Heads(features, 1, tasks) if value_head else None
        with torch.no_grad():
            self.head.linear.weight.mul_(prediction_scale)
            self.head.linear.bias.mul_(prediction_scale)

    def _check_normalize(self) -> None:
        if self.normalize not in get_args(Normalize):
            raise ValueError(
                f"normalize is {self.normalize!r}; choose {', '.join(get_args(Normalize))}"
            )
        if self.normalize != "none" and not self._norms():
            raise ValueError(
                f"normalize is {self.normalize!r}, but no vector has a built-in encoder; use none"
            )

    def _norms(self) -> dict[str, RunningNorm]:
        """Return the normalising layers by modality."""
        encoders = {name: self.encoders[_key(name)] for name in self.names}
        return {
            name: encoder.norm
            for name, encoder in encoders.items()
            if isinstance(encoder, VectorEncoder) and encoder.norm is not None
        }

    def update_statistics(self, obs: Mapping[str, Tensor]) -> None:
        """Add new experience to the statistics of the normalising layers.

        A learner calls this once for each example that it collects. Call it yourself in a loop of
        your own.

        Args:
            obs: Modality name -> (T, B, ...). Absent modalities do not count.
        """
        for name, norm in self._norms().items():
            if name in obs:
                x = obs[name].flatten(0, 1).flatten(1)
                if PRESENCE in obs:
                    x = x[obs[PRESENCE].flatten(0, 1)[:, self.names.index(name)] > 0.5]
                norm.update(x)

    def end_first_phase(self) -> None:
        """Freeze the statistics if `normalize` is "first-task"."""
        if self.normalize == "first-task":
            for norm in self._norms().values():
                norm.frozen.fill_(True)

    def initial_state(self, batch: int) -> Tensor:
        """Return zeros (batch, hidden_size) on the agent's device."""
        return self.head.linear.weight.new_zeros(batch, self.hidden_size)

    def forward(
        self, obs: Mapping[str, Tensor], state: Tensor, start: Tensor
    ) -> tuple[Output, Tensor]:
        """Run the agent over a sequence.

        Args:
            obs: Modality name -> (T, B, ...). Missing modalities count as absent.
            state: State before the first step, (B, hidden_size).
            start: True where an episode begins, bool (T, B). It resets the state before that step.

        Returns:
            The output of all steps, and the state after the last one, (B, hidden_size).

        Raises:
            ValueError: If `obs` has none of the agent's modalities, or lacks the cue that several
                heads need.
        """
        T = start.shape[0]
        rows = {name: rearrange(value, "t b ... -> (t b) ...") for name, value in obs.items()}
        features = self.attention(*self._tokens(rows))
        if self.memory is not None:
            hidden, state = self.memory(rearrange(features, "(t b) d -> t b d", t=T), state, start)
            features = rearrange(hidden, "t b d -> (t b) d")
        prediction, heads = self.head(features, rows)
        prediction = rearrange(prediction, "(t b) p -> t b p", t=T)
        if heads is not None:
            heads = rearrange(heads, "(t b) k p -> t b k p", t=T)
        value = None
        if self.value is not None:
            value = rearrange(self.value(features, rows)[0], "(t b) 1 -> t b", t=T)
        return Output(prediction, value, heads), state

    def _tokens(self, rows: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Return the tokens (R, N, token_size), and which are present, (R, N), or None for all."""
        names = [name for name in self.names if name in rows]
        if not names:
            raise ValueError(
                f"the observation has {', '.join(rows) or 'nothing'}; it needs at least one of "
                f"{', '.join(self.names)}"
            )
        encoded = [self.encoders[_key(name)](rows[name]) for name in names]
        tokens = torch.cat(encoded, dim=1)
        if PRESENCE not in rows:
            return tokens, None
        columns = [self.names.index(name) for name in names]
        return tokens, rows[PRESENCE][:, columns] > 0.5


def _key(name: str) -> str:
    """Return a modality's name as a module's name: torch reserves dots and some names."""
    return "of_" + name.replace("_", "__").replace(".", "_d")


def _size(space: spaces.Space[object]) -> int:
    size = 1
    for side in space.shape or ():
        size *= side
    return size


def _encoder(name: str, space: spaces.Space[object], token_size: int, normalize: bool) -> nn.Module:
    if not isinstance(space, spaces.Box):
        raise ValueError(f"modality {name!r} is {space}; it must be a Box")
    try:
        kind = modality_kind(name, space)
    except ValueError as error:
        raise ValueError(f"{error}, or give the agent encoders={{{name!r}: ...}}") from None
    if kind == "picture":
        return ImageEncoder(space.shape, token_size)
    if kind == "tokens":
        embedding = EmbeddingEncoder(space.vocabulary, token_size)  # type: ignore[attr-defined]
        return BackboneEncoder(embedding, token_size)
    return VectorEncoder(_size(space), token_size, normalize and name != CUE)
