"""Linear heads: one for all tasks, or one per task, selected by the cue."""

from __future__ import annotations

from collections.abc import Mapping

from einops import einsum, rearrange
from torch import Tensor, nn

from everloop.contract import CUE


class Heads(nn.Module):
    """Linear heads on the same features.

    Args:
        features: Number of features.
        outputs: Number of outputs of each head, P.
        tasks: Number of heads, K. With several, the one-hot modality "cue" selects one.
    """

    def __init__(self, features: int, outputs: int, tasks: int = 1) -> None:
        super().__init__()
        self.tasks = tasks
        self.linear = nn.Linear(features, tasks * outputs)

    def forward(self, features: Tensor, rows: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Return the outputs of the selected heads, and those of all heads.

        Args:
            features: (R, ..., features), for R = T * B steps of the batch.
            rows: The observations at these steps, modality name -> (R, ...). Only "cue", (R, K), is
                used.

        Returns:
            The selected outputs (R, ..., P); and all outputs (R, K, ..., P), or None for a single
            head.

        Raises:
            ValueError: If there are several heads and no cue.
        """
        outputs: Tensor = self.linear(features)
        if self.tasks == 1:
            return outputs, None
        if CUE not in rows:
            raise ValueError(
                f"the observation has no modality {CUE!r}, which selects the head; make the world "
                "with a task cue"
            )
        heads = rearrange(outputs, "r ... (k p) -> r k ... p", k=self.tasks)
        selected: Tensor = einsum(heads, rows[CUE].to(heads.dtype), "r k ... p, r k -> r ... p")
        return selected, heads
