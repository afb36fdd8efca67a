"""Linear heads on features: one for all tasks, or one for each, chosen by the cue that tells the
task.
"""

from __future__ import annotations

from collections.abc import Mapping

from einops import einsum, rearrange
from torch import Tensor, nn

from everloop.contract import CUE


class Heads(nn.Module):
    """`tasks` linear heads with `outputs` each; a row's one-hot modality "cue" (R, tasks) chooses
    among several.
    """

    def __init__(self, features: int, outputs: int, tasks: int = 1) -> None:
        super().__init__()
        self.tasks = tasks
        self.linear = nn.Linear(features, tasks * outputs)

    def forward(self, features: Tensor, rows: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """features (R, ..., features), rows: the observation's modalities, (R, ...) each.

        Returns (R, ..., outputs) and, of several heads, all of them (R, tasks, ..., outputs).
        Raises ValueError without a cue where there are several heads.
        """
        outputs: Tensor = self.linear(features)
        if self.tasks == 1:
            return outputs, None
        if CUE not in rows:
            raise ValueError(f"the observation has no modality {CUE!r}, which selects the head")
        heads = rearrange(outputs, "r ... (k p) -> r k ... p", k=self.tasks)
        chosen: Tensor = einsum(heads, rows[CUE].to(heads.dtype), "r k ... p, r k -> r ... p")
        return chosen, heads
