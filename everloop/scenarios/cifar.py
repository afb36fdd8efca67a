"""CIFAR-10 and CIFAR-100, split by classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from everloop.envs import Examples
from everloop.envs.data import load_images
from everloop.scenarios.images import Architecture, SplitImages


@dataclass
class SplitCIFAR10(SplitImages):
    """CIFAR-10 in 5 tasks of 2 classes (Krizhevsky 2009)."""

    name: ClassVar[str] = "split-cifar10"
    summary: ClassVar[str] = "image stream: CIFAR-10, 5 tasks of 2 classes"
    needs: ClassVar[str] = (
        'CIFAR-10: folder "cifar10" in EVERLOOP_DATA, or the Hub (uoft-cs/cifar10); extra "data"'
    )
    folder: ClassVar[str] = "cifar10"
    hub: ClassVar[str | None] = "uoft-cs/cifar10"
    evaluations_per_task: ClassVar[int] = 3
    architecture: Architecture = "reduced-resnet18"
    batch_size: int = 32

    def examples(self) -> tuple[Examples, Examples]:
        source = self.given(self.folder, self.hub)
        return load_images(source, image="img") if source == self.hub else load_images(source)


@dataclass
class SplitCIFAR100(SplitImages):
    """CIFAR-100 in 10 tasks of 10 classes (Krizhevsky 2009)."""

    name: ClassVar[str] = "split-cifar100"
    summary: ClassVar[str] = "image stream: CIFAR-100, 10 tasks of 10 classes"
    needs: ClassVar[str] = (
        'CIFAR-100: folder "cifar100" in EVERLOOP_DATA, or the Hub (uoft-cs/cifar100); extra "data"'
    )
    folder: ClassVar[str] = "cifar100"
    hub: ClassVar[str | None] = "uoft-cs/cifar100"
    evaluations_per_task: ClassVar[int] = 3
    architecture: Architecture = "reduced-resnet18"
    batch_size: int = 32
    classes_per_task: int = 10

    def examples(self) -> tuple[Examples, Examples]:
        source = self.given(self.folder, self.hub)
        return (
            load_images(source, image="img", label="fine_label")
            if source == self.hub
            else load_images(source)
        )
