"""A network of one's own as a backbone: it need not know anything of everloop."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from everloop.agents.networks import ImageShape, precision


class OwnBackbone(nn.Module):
    """Any module that makes features, for `Classifier`. A forward pass finds how many.

    Args:
        net: For images, it takes floats from 0 to 1, (R, C, H, W), and returns features (R, ...),
            which are flattened. For tokens, it takes ids (R, L) and returns features (R, size),
            or (R, L, size) with `per_token`.
        shape: Of one observation, an image's (H, W, C), or a text's (L,).
        per_token: Whether every token is answered for.

    Raises:
        ValueError: In one line, where `net` can't read such observations.
    """

    def __init__(self, net: nn.Module, shape: ImageShape, per_token: bool = False) -> None:
        super().__init__()
        self.net, self.images, self.per_token = net, len(shape) == 3, per_token
        probe = torch.zeros(2, *shape, dtype=torch.uint8 if self.images else torch.int32)
        training = net.training
        try:
            with torch.no_grad():
                found = self.eval()(probe)
        except Exception as error:  # the network is the user's own: anything can happen in it
            raise ValueError(
                f"network {type(net).__name__} can't read inputs of shape {tuple(shape)}: "
                f"{type(error).__name__}: {error}"
            ) from error
        finally:
            self.train(training)
        if not isinstance(found, Tensor) or found.ndim != (3 if per_token else 2):
            raise ValueError(
                f"network {type(net).__name__} gives "
                f"{tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__} "
                "for 2 inputs; it must give features "
                f"{'(2, L, size)' if per_token else '(2, size)'}"
            )
        self.size = found.shape[-1]

    def forward(self, x: Tensor) -> Tensor:
        """x (R, ...) as worlds show it -> (R, size), of tokens (R, L, size)."""
        if not self.images:
            features: Tensor = self.net(x)
            return features
        features = self.net(
            rearrange(x, "r h w c -> r c h w").to(precision(self), copy=True).div_(255.0)
        )
        return features.flatten(1) if features.ndim > 2 else features
