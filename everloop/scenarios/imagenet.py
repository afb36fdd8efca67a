"""ImageNet at 256 pixels, split by classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from everloop.envs import Examples
from everloop.envs.data import imagenet256
from everloop.scenarios.images import Architecture, SplitImages


@dataclass
class SplitImageNet256(SplitImages):
    """ImageNet in tasks of 10 classes each (Russakovsky et al. 2015), from Kaggle.

    Args:
        data: Folder with one folder of pictures for each class. By default the data is downloaded
            from Kaggle.
        side: Height and width in pixels, 1 to 256, to which pictures are scaled and cropped.
    """

    name: ClassVar[str] = "split-imagenet256"
    summary: ClassVar[str] = "image stream: ImageNet at up to 256 pixels, tasks of 10 classes"
    needs: ClassVar[str] = (
        "ImageNet-256: --data FOLDER with one folder of pictures for each class, or Kaggle "
        'credentials and the extra "kaggle"'
    )
    evaluations_per_task: ClassVar[int] = 3
    architecture: Architecture = "resnet18"
    batch_size: int = 32
    classes_per_task: int = 10
    side: int = 64

    def examples(self) -> tuple[Examples, Examples]:
        return imagenet256(self.data, size=(self.side, self.side))
