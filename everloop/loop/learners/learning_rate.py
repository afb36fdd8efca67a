"""Schedules of the learning rate."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from everloop.loop.state import Stateful

PATIENCE = 5  # average losses without a clear new minimum; the next one halves the rate


class LearningRate(Stateful):
    """The learning rates of an optimizer. The base class keeps them constant.

    Args:
        optimizer: The optimizer. Its learning rates at this moment become the full rates.
    """

    state: ClassVar[tuple[str, ...]] = ("full",)

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.full = [float(group["lr"]) for group in optimizer.param_groups]

    def begin(self, updates: int) -> None:
        """Called when a phase begins. `updates` is the number of calls of `next` in it."""

    def average(self, loss: float) -> None:
        """Called about every 20 updates and at a phase's end, with the mean loss since then."""

    def next(self) -> None:
        """Called for each batch before its optimizer step, also if several batches share a step."""

    def multiply(self, ratio: float) -> None:
        """Multiply the full rates by `ratio`; the present ones follow from the next call on."""
        self.full = [full * ratio for full in self.full]

    def scale(self, factor: float) -> None:
        """Set the rate of every group to `factor` times its full rate."""
        for group, full in zip(self.optimizer.param_groups, self.full, strict=True):
            group["lr"] = full * factor


class Cosine(LearningRate):
    """A cosine from the full rate to 0 over each phase.

        rate = full * (1 + cos(pi t / n)) / 2   at call t of n

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
    """Halves the rate when the loss stops falling; a phase begins with the full rate.

    It halves the rate at the average after `PATIENCE` averages without a clear new minimum (one
    that is lower by at least 0.01 %).
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

    It needs no task boundaries. The Page-Hinkley test (Page 1954) of the package river detects the
    rise.

    Raises:
        ImportError: If river is not installed. The message says how to install it.
    """

    state = ("losses",)

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(optimizer)
        self.losses: list[float] = []  # average losses since the last drift
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
        for loss in self.losses:
            self.detector.update(loss)

    def _restored(self) -> None:
        self._new_detector()

    def begin(self, updates: int) -> None:
        """Do nothing, because this schedule ignores task boundaries."""

    def average(self, loss: float) -> None:
        self.losses.append(loss)
        self.detector.update(loss)
        if self.detector.drift_detected:
            self.losses = []
            self._new_detector()
            self.restart()
        else:
            super().average(loss)


RATES = {"constant": LearningRate, "cosine": Cosine, "plateau": Plateau, "drift": DriftAdaptive}
"""Schedules by the value of the option `rate`."""
