"""Writing result.json during a run."""

from __future__ import annotations

from pathlib import Path

from everloop.loop import Callback, Run
from everloop.loop.disk import write_json


class Record(Callback):
    """Writes result.json before training, after each phase and after a rollback."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_run_begin(self, run: Run) -> None:
        write_json(self.path, run.result.to_dict())

    def on_phase_end(self, run: Run) -> None:
        write_json(self.path, run.result.to_dict())

    def on_rollback(self, run: Run) -> None:
        write_json(self.path, run.result.to_dict())

    def _restored(self, run: Run) -> None:
        write_json(self.path, run.result.to_dict())
