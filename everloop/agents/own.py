"""A user's own network as a backbone. It need not know anything about everloop."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from everloop.agents.networks import ImageShape, precision


class OwnBackbone(nn.Module):
    """Any module that computes features, as a backbone for `Classifier`.

    A forward pass finds the number of features.

    Args:
        net: For images, it takes floats from 0 to 1, (R, C, H, W), and returns features (R, ...),
            which are flattened. For tokens, it takes ids (R, L) and returns features (R, size),
            or (R, L, size) with `per_token`. For vectors it takes floats (R, D) and returns
            features (R, size).
        shape: Shape of one observation: (H, W, C) of an image, (L,) of a text, or (D,).
        per_token: Whether `net` returns features of every token.
        vectors: Whether observations of one axis are vectors of floats, not token ids.

    Raises:
        ValueError: If `net` cannot read such observations or returns another shape. The message
            is one line.
    """

    def __init__(
        self,
        net: nn.Module,
        shape: ImageShape,
        per_token: bool = False,
        vectors: bool = False,
    ) -> None:
        super().__init__()
        self.net = net
        self.images = len(shape) == 3
        self.per_token = per_token
        texts = torch.float32 if vectors else torch.int32
        probe = torch.zeros(2, *shape, dtype=torch.uint8 if self.images else texts)
        training = net.training
        try:
            with torch.no_grad():
                features = self.eval()(probe)
        except Exception as error:  # the user's network may raise anything
            raise ValueError(
                f"network {type(net).__name__} can't read inputs of shape {tuple(shape)}: "
                f"{type(error).__name__}: {error}"
            ) from error
        finally:
            self.train(training)
        if not isinstance(features, Tensor) or features.ndim != (3 if per_token else 2):
            found = (
                f"shape {tuple(features.shape)}"
                if isinstance(features, Tensor)
                else type(features).__name__
            )
            raise ValueError(
                f"network {type(net).__name__} returns {found} for 2 inputs; it must return "
                f"features {'(2, L, size)' if per_token else '(2, size)'}"
            )
        self.size = features.shape[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Return features (R, size), or (R, L, size) for tokens, of x (R, ...) from a world."""
        if not self.images:
            features: Tensor = self.net(x)
            return features
        pixels = rearrange(x, "r h w c -> r c h w").to(precision(self), copy=True).div_(255.0)
        features = self.net(pixels)
        return features.flatten(1) if features.ndim > 2 else features
