"""Schedules of the learning rate within a task."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from everloop.loop.state import Stateful

PATIENCE = 5  # average losses without a new minimum before the rate is halved


class LearningRate(Stateful):
    """The learning rates of an optimizer. The base class keeps them constant.

    Args:
        optimizer: Its parameter groups hold the full learning rates.
    """

    state: ClassVar[tuple[str, ...]] = ("full",)

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.full = [float(group["lr"]) for group in optimizer.param_groups]

    def begin(self, updates: int) -> None:
        """Called when a task of `updates` updates begins."""

    def average(self, loss: float) -> None:
        """Called now and then with the average loss of the latest updates."""

    def next(self) -> None:
        """Called before each update."""

    def scale(self, factor: float) -> None:
        """Set the rate of every group to `factor` times its full rate."""
        for group, full in zip(self.optimizer.param_groups, self.full, strict=True):
            group["lr"] = full * factor


class Cosine(LearningRate):
    """A cosine from the full rate to 0 over each task.

        rate = full * (1 + cos(pi t / n)) / 2   at update t of n

    Loshchilov & Hutter 2017, eq. 5.
    """

    state = ("t", "n")
    t, n = 0, 1

    def begin(self, updates: int) -> None:
        self.t, self.n = 0, updates

    def next(self) -> None:
        self.scale(0.5 * (1.0 + float(torch.cos(torch.tensor(torch.pi * self.t / self.n)))))
        self.t += 1


class Plateau(LearningRate):
    """Halves the rate when the loss stops falling; a task begins with the full rate.

    The loss has stopped falling after `PATIENCE` averages without a new minimum.
    """

    state = ("halving",)

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(optimizer)
        self.restart()

    def begin(self, updates: int) -> None:
        self.restart()

    def restart(self) -> None:
        """Return to the full rate."""
        self.scale(1.0)
        self.halving = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self.optimizer, factor=0.5, patience=PATIENCE
        )

    def average(self, loss: float) -> None:
        self.halving.step(loss)


class DriftAdaptive(Plateau):
    """Halves the rate like `Plateau`, but returns to the full rate when the average loss rises.

    It needs no task boundaries. River's Page-Hinkley test (Page 1954) detects the rise.

    Raises:
        ImportError: If river is not installed. The message names the extra.
    """

    state = ("heard",)

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(optimizer)
        self.heard: list[float] = []  # average losses since the last drift
        self._new_detector()

    def _new_detector(self) -> None:
        """Make a detector that has seen the average losses since the last drift."""
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
        """Do nothing, because this schedule ignores task boundaries."""

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
"""Schedules by the name of the option `rate`."""
