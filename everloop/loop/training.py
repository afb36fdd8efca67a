"""How a supervised learner trains: rate, precision, device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from everloop.loop.augment import AUGMENTATIONS

CHOICES = (
    ("rate", ("constant", "cosine", "plateau", "drift")),
    ("precision", ("float32", "bfloat16")),
    ("augment", AUGMENTATIONS),
)


@dataclass(frozen=True)
class Training:
    """Options of `SupervisedLearner`. Where the device or the network lacks one, it does nothing and leaves a note.

    Args:
        learning_rate: Of the optimizer, above 0.
        rate: How the learning rate changes: constant; cosine falls to 0 over each task; plateau and
            drift follow the loss. plateau halves it where the loss stops falling and restarts with
            each task; drift restarts when a detector finds that the loss has jumped, and needs no
            task boundaries (extra drift).
        precision: bfloat16 computes forward passes in mixed precision. The loss is not scaled, so
            strategies see the gradients as they are.
        accumulate: Batches whose mean gradient makes one step, 1 or more.
        updates_per_batch: Steps along each batch, 1 or more: how a single pass over a stream learns
            more of it. Each step has other stored examples and another draw of `augment`. The guess
            comes before the first; the batch is stored before the second.
        augment: crop_flip mirrors and moves each image at random by up to 4 pixels, in training
            only. Memories store images as they came (`everloop.loop.augment`).
        checkpointing: Compute activations again on the way back instead of keeping them, in
            networks that can.
        channels_last: Keep convolutions' weights channel by channel, as images come.
        balanced: Softmax with the labels' frequencies so far as prior, so that rare classes count
            (Ren et al. 2020, eq. 4). In training only; for classes.
        device: auto takes a GPU where there is one; else as torch names it.

    Raises:
        ValueError: That names the value, for what is outside these ranges.
    """

    learning_rate: float = 1e-3
    rate: Literal["constant", "cosine", "plateau", "drift"] = "constant"
    precision: Literal["float32", "bfloat16"] = "float32"
    accumulate: int = 1
    updates_per_batch: int = 1
    augment: Literal["none", "crop_flip"] = "none"
    checkpointing: bool = False
    channels_last: bool = False
    balanced: bool = False
    device: str = "auto"

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(f"learning_rate is {self.learning_rate}, allowed: more than 0")
        for name, allowed in CHOICES:
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}, allowed: {', '.join(allowed)}")
        for name in ("accumulate", "updates_per_batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, allowed: 1 or more")
        if self.accumulate > 1 and self.updates_per_batch > 1:
            raise ValueError(f"updates_per_batch is {self.updates_per_batch}, allowed with accumulate {self.accumulate}: 1")

    def make_optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        """Adam for the module's weights: what a learner uses that is given no optimizer of another kind."""
        return torch.optim.Adam(module.parameters(), lr=self.learning_rate, fused=True)

    def find_device(self) -> torch.device:
        """The device that is asked for. Raises ValueError for one that this machine has not."""
        if self.device == "auto":
            return torch.device(torch.accelerator.current_accelerator() or "cpu" if torch.accelerator.is_available() else "cpu")
        try:
            device = torch.device(self.device)
            torch.empty(1, device=device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            first = str(error).splitlines()[0]
            raise ValueError(f"device is {self.device!r}, allowed: one that torch finds on this machine ({first})") from None
        return device

    def prepare(self, module: nn.Module) -> list[str]:
        """Set up `module` in place; returns the notes about what it or the device lacks."""
        notes = []
        device = self.find_device()
        module.to(device)
        if self.channels_last:
            if any(isinstance(layer, nn.Conv2d) for layer in module.modules()):
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            else:
                notes.append("channels_last does nothing: the network has no convolutions")
        if self.checkpointing:
            able = [layer for layer in module.modules() if hasattr(layer, "checkpointing")]
            for layer in able:
                layer.checkpointing = True  # type: ignore[assignment]
            if not able:
                notes.append("checkpointing does nothing: the network has no layer that can recompute its activations")
        if self.precision == "bfloat16" and not torch.amp.is_autocast_available(device.type):
            notes.append(f"precision bfloat16 does nothing: no mixed precision on {device.type}")
        return notes
