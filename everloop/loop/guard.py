"""What to do when training diverges: stop, or go back and learn more slowly."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from everloop.loop.callbacks.checkpoints import Checkpoints
from everloop.loop.checkpoint import step_of
from everloop.loop.results.result import Rollback
from everloop.loop.run import Callback, Run
from everloop.loop.world import Diverged, NotFiniteError

Shapes = Mapping[str, tuple[int, ...]]

FACTOR = 0.5
"""What a rollback multiplies the learning rate by."""


class Guard(Callback):
    """Limits the training loss, and brings a run back that has diverged.

    A rollback restores the last exact checkpoint, with half the learning rate from there on. It
    restores everything else too, so the updates since then are repeated with smaller steps. If no
    checkpoint is known, it restores the state at the run's begin or at the last phase's end, which
    is kept in memory. Place the guard after all other callbacks.

    Each rollback is a warning, an entry of `result.rollbacks`, and the factor of the learning rate
    under guard/rollback in the log.

    Args:
        max_loss: A training loss above it, a number above 0, counts as divergence. In
            Stable-Baselines3 it is compared with every loss in the log. None for no limit: only a
            loss, a gradient, an observation or a reward that is not finite counts.
        on_divergence: "stop" ends the run with the error, "rollback" goes back.
        max_rollbacks: The largest number of rollbacks in a run, 1 or more. After them it stops.
        checkpoints: What saves the run; None if nothing does.

    Raises:
        ValueError: If a value is out of range.
    """

    def __init__(
        self,
        max_loss: float | None = None,
        on_divergence: Literal["stop", "rollback"] = "stop",
        max_rollbacks: int = 3,
        checkpoints: Checkpoints | None = None,
    ) -> None:
        if max_loss is not None and not 0 < max_loss < math.inf:
            raise ValueError(f"max_loss is {max_loss}; it must be finite and above 0")
        if on_divergence not in ("stop", "rollback"):
            raise ValueError(f"on_divergence is {on_divergence!r}; choose one of stop, rollback")
        if max_rollbacks < 1:
            raise ValueError(f"max_rollbacks is {max_rollbacks}; it must be 1 or more")
        self.max_loss = math.inf if max_loss is None else max_loss
        self.on_divergence, self.max_rollbacks = on_divergence, max_rollbacks
        self.checkpoints = checkpoints
        self._kept: dict[str, Any] | None = None  # a state of the run, where none is saved
        self._kept_at = 0  # its step
        self._is_due = True  # True if that state should be taken anew
        self._shapes: Shapes | None = None  # of the weights when the phase began

    def on_run_begin(self, run: Run) -> None:
        run.learner.max_loss = self.max_loss
        self._keep_unless_saved(run)

    def _restored(self, run: Run) -> None:
        run.learner.max_loss = self.max_loss

    def on_phase_begin(self, run: Run) -> None:
        self._shapes = _shapes(run)

    def on_phase_end(self, run: Run) -> None:
        self._is_due = True

    def on_advance_end(self, run: Run) -> None:
        if self.on_divergence == "stop" or run.done or run.inexact is not None:
            return
        if self._is_due:
            self._keep_unless_saved(run)
        elif self._shapes not in (None, _shapes(run)):
            self._keep(run)  # a strategy has added weights, for which earlier states have no values
        self._shapes = None

    def _keep_unless_saved(self, run: Run) -> None:
        """Keep the state of the run in memory if there is no checkpoint."""
        if self.on_divergence == "rollback":
            self._kept, self._is_due = None, False
            if self._saved is None:
                self._keep(run)

    def _keep(self, run: Run) -> None:
        self._kept, self._kept_at = run.state_dict(), run.steps

    @property
    def _saved(self) -> Path | None:
        """The last exact checkpoint."""
        return None if self.checkpoints is None else self.checkpoints.last

    def on_failure(self, run: Run, error: NotFiniteError) -> bool:
        if self.on_divergence == "stop":
            return False
        if (why := self._why_not(run, error)) is not None:
            error.add_note(why)
            return False
        try:
            self._go_back(run, error)
        except (ValueError, OSError) as problem:
            error.add_note(f"it can't be rolled back: {' '.join(str(problem).split())}")
            return False
        return True

    def _why_not(self, run: Run, error: NotFiniteError) -> str | None:
        """Return why another rollback is not allowed or would change nothing; None if it may be."""
        earlier = run.result.rollbacks
        again = any(rollback.because == _what(error) for rollback in earlier)
        if again and not isinstance(error, Diverged):
            return (
                "the same happened before a rollback, so the learning rate is not the cause; look "
                "at what the world gives at this step"
            )
        if len(earlier) < self.max_rollbacks:
            return None
        error.limit_reached = True
        times = "once" if len(earlier) == 1 else f"{len(earlier)} times"
        return (
            f"it was rolled back {times}, and the learning rate is {run.learner.rate_factor:g} of "
            "what was set"
        )

    def _go_back(self, run: Run, error: NotFiniteError) -> None:
        """Restore an earlier state with half the learning rate, and tell everybody.

        Raises:
            ValueError: If no earlier state is known, or it can't be restored.
        """
        step, factor = run.steps, FACTOR * run.learner.rate_factor
        earlier = run.result.rollbacks
        saved, kept = self._saved, self._kept
        if kept is not None and (saved is None or step_of(saved) < self._kept_at):
            run.load_state_dict(copy.deepcopy(kept))
        elif saved is not None:
            run.load(saved)
        else:
            raise ValueError("no earlier state is known")
        run.learner.scale_rate(factor)
        run.result.rollbacks = [*earlier, Rollback(step, run.steps, factor, _what(error))]
        warnings.warn(
            f"{_what(error)}; the run goes back to step {run.steps}, with {factor:g} of the "
            "learning rate",
            stacklevel=2,
        )
        run.log({"guard/rollback": factor})
        for callback in run.callbacks:
            callback.on_rollback(run)


def _shapes(run: Run) -> Shapes:
    """Return the shape of each weight of the network by name."""
    return {name: weight.shape for name, weight in run.learner.module.named_parameters()}


def _what(error: NotFiniteError) -> str:
    """Return what has happened, without the advice."""
    return str(error).partition(";")[0]
