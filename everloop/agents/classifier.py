"""A backbone with one linear head, or one for each task."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from everloop.agents.heads import Heads
from everloop.contract import Output


class Classifier(nn.Module):
    """A backbone with one linear head, or one for each task, on one modality and without memory.

    Args:
        backbone: Takes the modality's values for R = T * B steps, (R, ...), and returns features
            (R, size), or (R, L, size) for one prediction per token. `backbone.size` is the number
            of features.
        prediction_size: P, the number of logits per step or token.
        modality: Name of the modality.
        tasks: Number of heads. With several, the one-hot modality "cue" selects one.
    """

    def __init__(
        self, backbone: nn.Module, prediction_size: int, modality: str = "image", tasks: int = 1
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.modality = modality
        self.heads = Heads(int(backbone.size), prediction_size, tasks)  # type: ignore[arg-type]

    def initial_state(self, batch: int) -> Tensor:
        """Return an empty state, (batch, 0)."""
        return self.heads.linear.weight.new_zeros(batch, 0)

    def forward(
        self, obs: Mapping[str, Tensor], state: Tensor, start: Tensor
    ) -> tuple[Output, Tensor]:
        """Classify every step of a sequence.

        Args:
            obs: Modality name -> (T, B, ...).
            state: Returned unchanged.
            start: bool (T, B), of which only the shape is used.

        Returns:
            The output, with a prediction (T, B, P), or (T, B, L * P) for tokens; and the state.

        Raises:
            ValueError: If there are several heads and `obs` has no cue.
        """
        # views instead of einops: parsing its patterns is slow compared to a small network's step
        T, B = start.shape
        rows: dict[str, Tensor] = {}
        if self.heads.tasks > 1:
            rows = {name: value.flatten(0, 1) for name, value in obs.items()}
        features = self.backbone(obs[self.modality].flatten(0, 1))
        prediction, heads = self.heads(features, rows)
        if heads is not None:
            heads = heads.reshape(T, B, self.heads.tasks, -1)
        return Output(prediction.view(T, B, -1), None, heads), state
