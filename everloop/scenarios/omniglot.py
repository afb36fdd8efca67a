"""Omniglot, one alphabet per task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from everloop.envs import ByColumn, Examples, TaskSplit
from everloop.envs.data import load_images
from everloop.scenarios.images import Architecture, ImageScenario


@dataclass
class SplitOmniglot(ImageScenario):
    """Handwritten characters of 50 alphabets, each a task (Lake et al. 2015).

    A task has the 14 to 55 characters of its alphabet as classes.

    Args:
        alphabets: Number of alphabets, 1 or more, the first by name. By default all of them.
    """

    name: ClassVar[str] = "split-omniglot"
    summary: ClassVar[str] = "image stream: Omniglot, 50 tasks of one alphabet each"
    needs: ClassVar[str] = (
        'Omniglot: folder "omniglot28" in EVERLOOP_DATA, or --data (columns image, label, '
        'alphabet); extra "data"'
    )
    folder: ClassVar[str] = "omniglot28"
    architecture: Architecture = "convnet"
    batch_size: int = 32
    epochs: int = 5
    alphabets: int | None = None

    def examples(self) -> tuple[Examples, Examples]:
        return load_images(self.given(self.folder), columns=("alphabet",))

    def task_split(self) -> TaskSplit:
        if self.alphabets is None:
            return ByColumn("alphabet")
        names = sorted(set(self.loaded[0].columns["alphabet"].tolist()))
        if not 1 <= self.alphabets <= len(names):
            raise ValueError(f"alphabets is {self.alphabets}; it must be 1 to {len(names)}")
        return ByColumn("alphabet", order=names[: self.alphabets])
