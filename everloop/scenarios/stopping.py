"""Ctrl-C and SIGTERM: a run stops at the next point where it can be saved."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

from everloop.loop import Callback, Checkpoints, Run
from everloop.scenarios.jobs import Terminated


class Stopping(Callback):
    """Saves and ends a run after the update during which Ctrl-C or SIGTERM arrives.

    Use it as a context manager. In the main thread it then handles both signals. A second Ctrl-C
    stops at once.

    Args:
        checkpoints: What saves the run.
        say: Function that shows a line to the user.

    Raises:
        KeyboardInterrupt: From the run, when it has been saved; `Terminated` after SIGTERM.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        say: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
    ) -> None:
        self.checkpoints, self.say = checkpoints, say
        self.asked: type[KeyboardInterrupt] | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self.asked is not None:
                raise KeyboardInterrupt
            self.say("stopping after this update to save the run; Ctrl-C again stops at once")
        self.asked = self.asked or (KeyboardInterrupt if number == signal.SIGINT else Terminated)

    def on_advance_end(self, run: Run) -> None:
        if self.asked is not None and not run.done:
            self.checkpoints.finish(run)
            raise self.asked
