"""A network that reads vectors of numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

from torch import Tensor, nn

from everloop.agents.networks import fully_connected, precision
from everloop.agents.normalise import Normalize, RunningNorm


class FeatureMLP(nn.Module):
    """Fully connected ReLU layers on a vector, which is normalised first. A backbone.

    Args:
        size: Size of the vector, D.
        hidden: Units of each layer, 1 or more.
        normalize: Whether to normalise the vector by its mean and variance in training
            (`RunningNorm`): "none"; "running", over everything seen so far; or "first-task", over
            the first phase of training only.
        modality: Name of the modality that holds the vector.

    Attributes:
        size: Number of features.

    Raises:
        ValueError: If a layer has no units, or `normalize` is another word.
    """

    def __init__(
        self,
        size: int,
        hidden: Sequence[int] = (100, 100),
        normalize: Normalize = "running",
        modality: str = "features",
    ) -> None:
        super().__init__()
        if any(units < 1 for units in hidden):
            raise ValueError(f"hidden is {list(hidden)}; each layer needs 1 or more units")
        if normalize not in get_args(Normalize):
            raise ValueError(f"normalize is {normalize!r}; choose {', '.join(get_args(Normalize))}")
        self.normalize, self.modality = normalize, modality
        self.norm = RunningNorm(size) if normalize != "none" else None
        self.layers = fully_connected([size, *hidden])
        self.size = [size, *hidden][-1]

    def update_statistics(self, obs: Mapping[str, Tensor]) -> None:
        """Add new experience, (T, B, D) in the modality, to the statistics."""
        if self.norm is not None and self.modality in obs:
            self.norm.update(obs[self.modality].flatten(0, 1))

    def end_first_phase(self) -> None:
        """Freeze the statistics if `normalize` is "first-task"."""
        if self.norm is not None and self.normalize == "first-task":
            self.norm.frozen.fill_(True)

    def forward(self, x: Tensor) -> Tensor:
        """Return features (R, size) of vectors x (R, D)."""
        x = x.to(precision(self))
        features: Tensor = self.layers(x if self.norm is None else self.norm(x))
        return features
