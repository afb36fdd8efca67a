"""Saving a run from time to time, so that it can go on after it was stopped."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from everloop.loop import disk
from everloop.loop.checkpoint import checkpoints, is_exact, next_name, step_of
from everloop.loop.results.result import LOWER_IS_BETTER, MEASURES
from everloop.loop.run import Callback, Run
from everloop.loop.weights import write_weights

SECONDS = 300.0
"""Seconds between two checkpoints by default."""
SHARE = 0.02
"""Share of the time that saving may take by default."""
KEPT = 2
"""Number of the latest exact checkpoints that are kept."""
WEIGHTS = "weights.safetensors"
"""File of the network's weights, beside the checkpoints."""


class Checkpoints(Callback):
    """Saves the run to folder/checkpoints, and its weights to folder/weights.safetensors.

    The last two checkpoints are kept, and one when the run is done. A run is saved only where a
    restored one continues exactly, or when `finish` asks for it.

    Args:
        folder: Folder of the run. It is created if it does not exist.
        every: World steps between two checkpoints, 1 or more, or 0 for none but the last. The ends
            of phases are saved as well. With None a run is saved every five minutes and at the ends
            of phases, unless saving would then take more than 2 % of the time.
        keep_best: Name of a measure, one of `MEASURES`. The checkpoint at the evaluation with its
            best value is kept too. Only evaluations of the latest phase are compared, because
            earlier ones are of a network that has not seen the later tasks.
        about: What the manifest of each checkpoint says besides.

    Raises:
        ValueError: If `every` is negative or `keep_best` is no measure.
    """

    state = ("best",)

    def __init__(
        self,
        folder: Path | str,
        every: int | None = None,
        keep_best: str | None = None,
        about: Mapping[str, Any] = {},
    ) -> None:
        if every is not None and every < 0:
            raise ValueError(f"checkpoint_every is {every}; it must be 0 or more")
        if keep_best is not None and keep_best not in MEASURES:
            raise ValueError(f"keep_best is {keep_best!r}; choose one of {', '.join(MEASURES)}")
        self.folder, self.every, self.keep_best = Path(folder), every, keep_best
        self.about = about
        self.best: list[Any] | None = None
        """Phase, value (higher is better) and folder name of the best checkpoint."""
        self._saved_at = time.monotonic()
        self._seconds = 0.0  # how long the last save took
        self._saved = (-1, -1)  # step and phase of the last save
        self._phase_ended = self._evaluated = False
        self._made = False  # True once the folder must exist
        self._given_up: list[Path] = []  # of a course that the run has gone back from

    @property
    def place(self) -> Path:
        """The folder of the checkpoints."""
        return self.folder / "checkpoints"

    @property
    def last(self) -> Path | None:
        """Folder of the run's last exact checkpoint; None if there is none."""
        found = [path for path in checkpoints(self.place) if path not in self._given_up]
        return next((path for path in reversed(found) if is_exact(path)), None)

    def on_run_begin(self, run: Run) -> None:
        self._begin(run)
        self._given_up = checkpoints(self.place)

    def _restored(self, run: Run) -> None:
        self._begin(run)
        self._given_up = [path for path in checkpoints(self.place) if step_of(path) > run.steps]

    def _begin(self, run: Run) -> None:
        self._saved_at = time.monotonic()
        self._saved = run.steps, run.phase
        self._phase_ended = self._evaluated = False
        if not self._made:
            disk.make_folder(self.place)
            self._made = True

    def on_evaluation(self, run: Run) -> None:
        self._evaluated = True

    def on_phase_end(self, run: Run) -> None:
        self._phase_ended = True

    def on_advance_end(self, run: Run) -> None:
        better = self._evaluated and self._is_better(run)
        if better or (self._is_due(run) and run.inexact is None):
            self.save(run, better)
        self._phase_ended = self._evaluated = False

    def on_rollback(self, run: Run) -> None:
        if self.every != 0:  # a run that is resumed then goes on from here too
            self.save(run)

    def _is_due(self, run: Run) -> bool:
        if self.every is not None:
            crossed = self.every > 0 and run.steps // self.every > self._saved[0] // self.every
            return crossed or (self.every > 0 and self._phase_ended)
        passed = time.monotonic() - self._saved_at
        return passed >= SECONDS or (self._phase_ended and SHARE * passed >= self._seconds)

    def _is_better(self, run: Run) -> bool:
        """Return whether the latest evaluation is the best one, and note that it is."""
        now = run.result.evaluations[-1]
        if self.keep_best is None or now.phase is None:
            return False
        value = run.result.as_if_ended().measures()[self.keep_best]
        if value is None:
            return False
        value = -value if self.keep_best in LOWER_IS_BETTER else value
        if self.best is not None and (now.phase, value) <= tuple(self.best[:2]):
            return False
        self.best = [now.phase, value, ""]
        return True

    def save(self, run: Run, best: bool = False) -> Path:
        """Save the run, and remove older checkpoints.

        Args:
            run: The run, between two updates.
            best: Keep it as the best checkpoint.

        Returns:
            The folder of the checkpoint.
        """
        began = time.monotonic()
        if self._made and not self.place.is_dir():
            raise OSError(f"the folder {self.place} was removed during the run")
        folder = next_name(self.place, run.steps)
        if best and self.best is not None:
            self.best[2] = folder.name
        run.save(folder, self.about)
        self._remove_old(KEPT)
        self._saved_at, self._saved = time.monotonic(), (run.steps, run.phase)
        self._seconds = self._saved_at - began
        return folder

    def finish(self, run: Run) -> None:
        """Save the run as it is now, and the weights of its network.

        If the run can't be restored exactly from here, the last exact checkpoint is kept too.
        """
        if self._saved != (run.steps, run.phase) or not checkpoints(self.place):
            self.save(run)
        write_weights(self.folder / WEIGHTS, run.learner.module)

    def on_run_end(self, run: Run) -> None:
        self.finish(run)
        self._remove_old(1)

    def _remove_old(self, kept: int) -> None:
        """Remove checkpoints that are not needed, and what crashed processes have left."""
        found = [path for path in checkpoints(self.place) if path not in self._given_up]
        exact = [path for path in found if is_exact(path)]
        keep = {*exact[-kept:], *found[-1:]}
        if self.best is not None:
            keep.add(self.place / self.best[2])
        unneeded = [path for path in found if path not in keep]
        for path in [*unneeded, *self._given_up, *self.place.glob(".step-*.new")]:
            disk.remove(path)
        self._given_up = []
