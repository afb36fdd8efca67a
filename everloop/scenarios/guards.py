"""The guards of a run: what to do when training diverges, and when the score stops rising."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from everloop.loop import Callback, Checkpoints, EarlyStopping, Guard, Learner, Plan
from everloop.loop.checkpoint import checkpoints, is_exact
from everloop.loop.world import Diverged, NotFiniteError
from everloop.scenarios.folder import CHECKPOINTS, CONFIG
from everloop.scenarios.scenario import Scenario


@dataclass(frozen=True)
class Guards:
    """The guards of a run.

    Args:
        max_loss: Training loss above which training has diverged, above 0. By default only a loss
            or gradient that is not finite counts.
        on_divergence: What to do when training diverges: stop, or go back to the last checkpoint
            with half the learning rate (rollback).
        max_rollbacks: The largest number of rollbacks in a run, 1 or more; after them it stops.
        early_stopping: Number of consecutive evaluations without a rise of a task's score after
            which its training ends, 1 or more. By default every task gets all of its steps.
        restore_best: Restore what had been learned at the best evaluation within a task when its
            training ends. Needs early_stopping.

    Raises:
        ValueError: If a value is out of range.
    """

    max_loss: float | None = None
    on_divergence: Literal["stop", "rollback"] = "stop"
    max_rollbacks: int = 3
    early_stopping: int | None = None
    restore_best: bool = False

    def __post_init__(self) -> None:
        Guard(self.max_loss, self.on_divergence, self.max_rollbacks)  # checks them
        if self.early_stopping is not None:
            EarlyStopping(self.early_stopping)
        elif self.restore_best:
            raise ValueError(
                "restore_best is True, but early_stopping is not set; give --early-stopping too"
            )

    def check(self, plan: Plan, learner: Learner) -> None:
        """Raise ValueError if early stopping would have no effect in any phase."""
        if self.early_stopping is not None:
            EarlyStopping(self.early_stopping, restore_best=self.restore_best).check(plan, learner)

    def config(self) -> dict[str, Any]:
        """Return the settings that are not the default."""
        return {
            field.name: value
            for field in fields(self)
            if (value := getattr(self, field.name)) != field.default
        }

    def notes(self, scenario: Scenario) -> list[str]:
        """Return remarks before the run."""
        lines = []
        if self.max_rollbacks != Guards.max_rollbacks and self.on_divergence == "stop":
            lines.append("max_rollbacks has no effect without --on-divergence rollback")
        if self.early_stopping is not None and not getattr(scenario, "held_out", 0):
            held = (
                "held_out makes it look at training examples instead"
                if hasattr(scenario, "held_out")
                else "this scenario has no other one"
            )
            lines.append(
                "early stopping looks at the score of the test split, which the result reports "
                f"too; {held}"
            )
        return lines

    def around(
        self, callbacks: Sequence[Callback], saving: Checkpoints | None = None
    ) -> list[Callback]:
        """Return the callbacks of a run with those of the guards in their places.

        Early stopping comes first among those that act, so that what is saved after it is complete.

        Args:
            callbacks: The other callbacks.
            saving: What saves the run; None if nothing does.
        """
        found = list(callbacks)
        if self.early_stopping is not None:
            found.append(EarlyStopping(self.early_stopping, restore_best=self.restore_best))
        if self.max_loss is not None or self.on_divergence != "stop":
            found.append(Guard(self.max_loss, self.on_divergence, self.max_rollbacks, saving))
        return found

    def way_out(self, error: NotFiniteError, folder: Path) -> str:
        """Return the line about a run in `folder` that `error` has ended, and how to go on."""
        found = [path for path in checkpoints(folder / CHECKPOINTS) if is_exact(path)]
        over = f"everloop run --config {folder / CONFIG} --out {folder} --overwrite"
        on = f"everloop resume {folder}" if found else over
        return "; ".join(
            [
                str(error),
                *getattr(error, "__notes__", []),
                f"the run stopped, and its log is in {folder}",
                f"the last good checkpoint is {found[-1]}" if found else "it has no checkpoint yet",
                self._advice(error, on, over),
            ]
        )

    def _advice(self, error: NotFiniteError, on: str, over: str) -> str:
        """Return what to do after `error`: go on with the command `on`, or start over."""
        if error.limit_reached:
            return f"allow more rollbacks: {on} --max-rollbacks {2 * self.max_rollbacks}"
        if not isinstance(error, Diverged):
            return f"repair the world, then go on: {on}"
        if self.on_divergence == "stop":
            return f"halve the learning rate where it diverges: {on} --on-divergence rollback"
        return f"start over with a lower learning rate: {over}"


NAMES = tuple(field.name for field in fields(Guards))
"""The names of the settings."""
CHANGEABLE = ("max_loss", "on_divergence", "max_rollbacks")
"""Settings that a run may change when it goes on; what it has done so far stays the same."""


def changed(guards: Guards, **values: Any) -> Guards:
    """Return `guards` with those `values` that are not None."""
    return Guards(**{**asdict(guards), **{k: v for k, v in values.items() if v is not None}})
