"""Training options of the supervised learner: rate, precision, device and others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from everloop.loop.learners.augment import AUGMENTATIONS

CHOICES = (
    ("rate", ("constant", "cosine", "plateau", "drift")),
    ("precision", ("float32", "bfloat16")),
    ("augment", AUGMENTATIONS),
)


@dataclass(frozen=True)
class Training:
    """Options of `SupervisedLearner`.

    An option that the device or the network does not support has no effect and leaves a note.

    Args:
        learning_rate: Learning rate of the optimizer, above 0.
        rate: Schedule of the learning rate: constant, cosine, plateau or drift. cosine falls to 0
            over each task. plateau halves the rate when the loss stops falling, and restarts with
            each task. drift does the same but restarts when a detector finds that the loss has
            risen, so it needs no task boundaries (extra drift).
        precision: Precision of the forward passes: float32, or bfloat16 (mixed). The loss is not
            scaled, so strategies see the gradients as they are.
        accumulate: Batches whose mean gradient makes one update, 1 or more. More than 1 needs
            updates_per_batch 1.
        updates_per_batch: Updates on each batch, 1 or more; more of them learn more from a single
            pass. Each update draws other stored examples and augments the batch again. The
            prediction is made before the first update; the batch is stored before the second.
        augment: Augmentation of training images: none, or crop_flip. crop_flip shifts each image
            at random by up to 4 pixels and mirrors it with probability 1/2. Memories store the
            original images (`everloop.loop.learners.augment`).
        checkpointing: Recompute activations in the backward pass to save memory, in networks that
            can.
        channels_last: Store the weights of convolutions channels-last, as images are.
        reset_optimizer: Forget the optimizer's state, such as Adam's moments, when the tasks
            change. Otherwise each task begins with the moments of the last one.
        balanced: Use a balanced softmax, whose prior is the label frequencies so far. Rare classes
            then count (Ren et al. 2020, eq. 4). In training only, with one class per example.
        device: Torch device, such as cpu or cuda:0; auto takes an accelerator if there is one.

    Raises:
        ValueError: For a value outside these ranges; it names the value.
    """

    learning_rate: float = 1e-3
    rate: Literal["constant", "cosine", "plateau", "drift"] = "constant"
    precision: Literal["float32", "bfloat16"] = "float32"
    accumulate: int = 1
    updates_per_batch: int = 1
    augment: Literal["none", "crop_flip"] = "none"
    checkpointing: bool = False
    channels_last: bool = False
    reset_optimizer: bool = False
    balanced: bool = False
    device: str = "auto"

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(
                f"learning_rate is {self.learning_rate}; it must be finite and above 0"
            )
        for name, allowed in CHOICES:
            if getattr(self, name) not in allowed:
                choices = ", ".join(allowed)
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of {choices}")
        for name in ("accumulate", "updates_per_batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        if self.accumulate > 1 and self.updates_per_batch > 1:
            raise ValueError(
                f"updates_per_batch is {self.updates_per_batch} and accumulate is "
                f"{self.accumulate}; one of them must be 1"
            )

    def make_optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        """Return Adam for the module's weights, the default optimizer of a learner."""
        return torch.optim.Adam(module.parameters(), lr=self.learning_rate, fused=True)

    def find_device(self) -> torch.device:
        """Return the device that `device` names.

        Raises:
            ValueError: If this machine does not have it.
        """
        if self.device == "auto":
            return torch.device(
                torch.accelerator.current_accelerator() or "cpu"
                if torch.accelerator.is_available()
                else "cpu"
            )
        try:
            device = torch.device(self.device)
            torch.empty(1, device=device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            first = str(error).splitlines()[0]
            raise ValueError(
                f"device is {self.device!r}, which torch can't use on this machine ({first}); "
                "use cpu or auto"
            ) from None
        return device

    def prepare(self, module: nn.Module) -> list[str]:
        """Set up `module` in place for these options.

        Returns:
            A note for each option that the module or the device does not support.
        """
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
                notes.append(
                    "checkpointing does nothing: the network has no layer that can recompute its "
                    "activations"
                )
        if self.precision == "bfloat16" and not torch.amp.is_autocast_available(device.type):
            notes.append(f"precision bfloat16 does nothing: no mixed precision on {device.type}")
        return notes
