"""A GRU whose state can be reset anywhere inside a sequence, without a loop over time."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn


class ResettableGRU(nn.Module):
    """One-layer GRU (Cho et al. 2014) whose state is reset before the steps marked by `start`.

    The sequences are cut into segments at the resets. The segments run as one padded batch, so
    the loop over time stays inside torch's kernel and is only as long as the longest segment.

    Args:
        input_size: Size of the input, D.
        hidden_size: Size of the state.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.gru = nn.GRU(input_size, hidden_size)

    def forward(self, x: Tensor, state: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """Run the GRU over a sequence.

        Args:
            x: Inputs (T, B, D).
            state: State before the first step, (B, hidden_size).
            start: True where the state is reset before the step, bool (T, B).

        Returns:
            Outputs (T, B, hidden_size), and the state after the last step, (B, hidden_size).
        """
        state = state.masked_fill(rearrange(start[0], "b -> b 1"), 0.0)
        if len(x) == 1 or not bool(start[1:].any()):
            output, last = self.gru(x, rearrange(state, "b h -> 1 b h"))
            return output, rearrange(last, "1 b h -> b h")
        return self._segments(x, state, start)

    def _segments(self, x: Tensor, state: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        T, B = start.shape
        begins = rearrange(start, "t b -> b t").clone()
        begins[:, 0] = True
        flat = rearrange(begins, "b t -> (b t)")
        first = torch.nonzero(flat).squeeze(1)  # where each segment begins, in (b t)
        segment = torch.cumsum(flat, 0) - 1
        time = torch.arange(T * B, device=x.device) - first[segment]
        longest = int(time.max()) + 1
        padded = x.new_zeros(longest, len(first), x.shape[2])
        padded[time, segment] = rearrange(x, "t b d -> (b t) d")
        initial = x.new_zeros(len(first), self.hidden_size)
        initial[segment[::T]] = state  # only a sequence's first segment inherits a state
        output, _ = self.gru(padded, rearrange(initial, "s h -> 1 s h"))
        output = rearrange(output[time, segment], "(b t) h -> t b h", t=T)
        return output, output[-1]
