"""Tasks made from MNIST: split by digits, permuted, or rotated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from everloop.envs import Permuted, Rotated, TaskSplit
from everloop.scenarios.images import ImageScenario, SplitImages

NEEDS = 'MNIST in EVERLOOP_DATA/mnist or from the Hub (ylecun/mnist); extra "data"'


@dataclass
class SplitMNIST(SplitImages):
    """MNIST in 5 tasks of 2 digits (LeCun et al. 1998; van de Ven et al. 2022)."""

    name: ClassVar[str] = "split-mnist"
    summary: ClassVar[str] = "image stream: MNIST, 5 tasks of 2 digits"
    needs: ClassVar[str] = NEEDS
    folder: ClassVar[str] = "mnist"
    hub: ClassVar[str | None] = "ylecun/mnist"


@dataclass
class PermutedMNIST(ImageScenario):
    """MNIST with a different permutation of the pixels in each task (Goodfellow et al. 2013).

    Args:
        num_tasks: Number of tasks, 1 or more. The first task shows the digits unpermuted.
        permutation_seed: Seed for the pixel permutations and for drawing examples, 0 or more.
        examples_per_task: Number of training examples in each task, 1 or more, drawn at random. By
            default all of them.
        same_examples: Draw examples_per_task once for all tasks; otherwise anew for each task.
    """

    name: ClassVar[str] = "permuted-mnist"
    summary: ClassVar[str] = (
        "image stream: MNIST, 10 tasks, each with its own permutation of the pixels"
    )
    needs: ClassVar[str] = NEEDS
    folder: ClassVar[str] = "mnist"
    hub: ClassVar[str | None] = "ylecun/mnist"
    num_tasks: int = 10
    permutation_seed: int = 0
    examples_per_task: int | None = None
    same_examples: bool = False

    def task_split(self) -> TaskSplit:
        return Permuted(
            self.num_tasks, self.permutation_seed, self.examples_per_task, self.same_examples
        )

    def without_effect(self) -> dict[str, str]:
        return super().without_effect() | (
            {"same_examples": "examples_per_task is not set"}
            if self.examples_per_task is None
            else {}
        )


@dataclass
class RotatedMNIST(ImageScenario):
    """MNIST rotated by a different angle in each task (Lopez-Paz & Ranzato 2017).

    Args:
        num_tasks: Number of tasks, 1 or more.
        angle_seed: Seed for drawing the angles uniformly from 0 to 180 degrees. By default they
            are 0, 180 / n, 2 * 180 / n, ... degrees for n tasks.
        angles: Angle of each task in degrees, in place of num_tasks and angle_seed.
    """

    name: ClassVar[str] = "rotated-mnist"
    summary: ClassVar[str] = "image stream: MNIST, 10 tasks, each rotated by its own angle"
    needs: ClassVar[str] = NEEDS
    folder: ClassVar[str] = "mnist"
    hub: ClassVar[str | None] = "ylecun/mnist"
    num_tasks: int = 10
    angle_seed: int | None = None
    angles: list[float] | None = None

    def task_split(self) -> TaskSplit:
        return Rotated(self.num_tasks, self.angles, self.angle_seed)
