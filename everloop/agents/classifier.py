"""A published network with a head, in the form in which learners call networks."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from everloop.agents.heads import Heads
from everloop.contract import Output


class Classifier(nn.Module):
    """backbone -> linear head. One modality, no memory.

    backbone: called with the rows of `modality` as the world shows them, (R, ...) -> features (R,
        size), or (R, L, size) to answer for every token; `backbone.size` is the number of features.
    prediction_size: P, logits for each row or token.
    tasks: heads; with several, the modality "cue" (one-hot) chooses.
    """

    def __init__(
        self, backbone: nn.Module, prediction_size: int, modality: str = "image", tasks: int = 1
    ) -> None:
        super().__init__()
        self.backbone, self.modality = backbone, modality
        self.heads = Heads(int(backbone.size), prediction_size, tasks)  # type: ignore[arg-type]

    def initial_state(self, batch: int) -> Tensor:
        """Nothing to remember: (batch, 0)."""
        return self.heads.linear.weight.new_zeros(batch, 0)

    def forward(
        self, obs: Mapping[str, Tensor], state: Tensor, start: Tensor
    ) -> tuple[Output, Tensor]:
        """obs[m] (T, B, ...) -> prediction (T, B, P), of tokens (T, B, L * P); the state passes
        through.
        """
        # views instead of einops: in a small network's step its parsing of patterns would count
        T, B = start.shape
        rows = (
            {name: value.flatten(0, 1) for name, value in obs.items()}
            if self.heads.tasks > 1
            else {}
        )
        x = obs[self.modality]
        outputs, heads = self.heads(self.backbone(x.flatten(0, 1)), rows)
        return Output(
            outputs.view(T, B, -1),
            None,
            None if heads is None else heads.reshape(T, B, self.heads.tasks, -1),
        ), state
