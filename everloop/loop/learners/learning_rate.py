"""Learning rates that change while a task is learned."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from everloop.loop.state import Stateful

PATIENCE = 5  # averages of the loss without a new lowest, before the rate halves


class LearningRate(Stateful):
    """Sets an optimizer's learning rates; constant unless a subclass knows better."""

    state: ClassVar[tuple[str, ...]] = ("full",)

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.full = [float(group["lr"]) for group in optimizer.param_groups]

    def begin(self, updates: int) -> None:
        """A task begins, and will take `updates` updates."""

    def average(self, loss: float) -> None:
        """The average loss of the latest updates."""

    def next(self) -> None:
        """Before each update."""

    def scale(self, factor: float) -> None:
        """Set every group's rate to `factor` times its full one."""
        for group, full in zip(self.optimizer.param_groups, self.full, strict=True):
            group["lr"] = full * factor


class Cosine(LearningRate):
    """(1 + cos(pi t / n)) / 2 of the full rate at update t of a task's n (Loshchilov & Hutter 2017,
    eq. 5).
    """

    state = ("t", "n")
    t, n = 0, 1

    def begin(self, updates: int) -> None:
        self.t, self.n = 0, updates

    def next(self) -> None:
        self.scale(0.5 * (1.0 + float(torch.cos(torch.tensor(torch.pi * self.t / self.n)))))
        self.t += 1


class Plateau(LearningRate):
    """Half the rate whenever PATIENCE averages of the loss brought no new lowest; the full rate
    when a task begins.
    """

    state = ("halving",)

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(optimizer)
        self.restart()

    def begin(self, updates: int) -> None:
        self.restart()

    def restart(self) -> None:
        self.scale(1.0)
        self.halving = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self.optimizer, factor=0.5, patience=PATIENCE
        )

    def average(self, loss: float) -> None:
        self.halving.step(loss)


class DriftAdaptive(Plateau):
    """As `Plateau`, but it is told of no task: back to the full rate when the average loss drifts
    upwards.

    The detector is river's Page-Hinkley test (Page 1954), of a rise of the loss. Raises
    ImportError, naming the extra, without river.
    """

    state = ("heard",)

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(optimizer)
        self.heard: list[float] = []  # averages since the last drift
        self._new_detector()

    def _new_detector(self) -> None:
        try:
            from river.drift import PageHinkley
        except ImportError:
            raise ImportError(
                'the drift-adaptive rate needs the package river: pip install "everloop[drift]"'
            ) from None
        detector: Any = PageHinkley(min_instances=5, delta=0.05, threshold=1.0, mode="up")
        self.detector = detector
        for loss in self.heard:
            self.detector.update(loss)

    def _restored(self) -> None:
        self._new_detector()

    def begin(self, updates: int) -> None:
        """Nothing: it finds out by itself."""

    def average(self, loss: float) -> None:
        self.heard.append(loss)
        self.detector.update(loss)
        if self.detector.drift_detected:
            self.heard = []
            self._new_detector()
            self.restart()
        else:
            super().average(loss)


RATES = {"constant": LearningRate, "cosine": Cosine, "plateau": Plateau, "drift": DriftAdaptive}
