"""Run several commands in parallel, in worker processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, suppress
from io import StringIO
from queue import SimpleQueue
from types import FrameType

WORK = "from everloop.scenarios.jobs import work; work()"


class Terminated(KeyboardInterrupt):
    """Raised on SIGTERM, so that everything ends as after Ctrl-C."""


def end_on_sigterm() -> None:
    """Make SIGTERM raise `Terminated` in this process."""

    def terminated(signum: int, frame: FrameType | None) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, terminated)


def work() -> None:
    """Run the commands that arrive on stdin, one after the other.

    Each line of stdin holds the words of a command after `everloop`, as JSON. The answer, a line on
    stdout, is the last line of the command's error, or null if it succeeded. The process ends when
    its parent does.
    """
    commands: SimpleQueue[list[str]] = SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            commands.put(json.loads(line))
        os.kill(os.getpid(), signal.SIGTERM)  # the parent has ended

    end_on_sigterm()
    threading.Thread(target=read, daemon=True).start()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what commands print is not wanted
    sys.argv[0] = "everloop"
    status = 0
    while status < 128:  # not stopped by a signal
        status, errors = _status(commands.get())
        lines = errors.strip().splitlines() or ["it ended without a message"]
        last = lines[-1].removeprefix("everloop: error: ")
        print(json.dumps(last if status else None), file=answers, flush=True)


def _status(words: list[str]) -> tuple[int, str]:
    """Run a command; return its exit status and what it wrote to stderr."""
    from everloop.scenarios.cli import main

    errors = StringIO()
    with redirect_stderr(errors):
        try:
            return main(words), errors.getvalue()
        except Exception:  # a fault of ours; the other commands go on
            traceback.print_exc()
            return 1, errors.getvalue()


Answers = SimpleQueue[tuple["Worker", str | None]]
"""Pairs of a worker and the last line of its command's error, or None if it succeeded."""


class Worker:
    """A process that runs one command after the other.

    Starting Python and torch takes longer than a short run, so processes are used again.

    Args:
        answers: Receives the worker after each command.
    """

    def __init__(self, answers: Answers) -> None:
        self.command: int | None = None  # position of the command that it runs
        # this Python, with words of our own
        self.process = subprocess.Popen(  # nosec B603
            [sys.executable, "-c", WORK],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._answers = answers
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def run(self, command: int, words: Sequence[str]) -> None:
        """Begin to run `everloop WORDS`."""
        self.command = command
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # `_read` then reports that the process has ended
            self.process.stdin.write(json.dumps(list(words)) + "\n")
            self.process.stdin.flush()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._answers.put((self, json.loads(line)))
        status = self.process.wait()
        self._answers.put((self, f"its process ended with status {status}"))

    def close(self) -> None:
        """Wait for the process, which must have been told to end."""
        self._reader.join()
        for file in (self.process.stdin, self.process.stdout):
            assert file is not None
            file.close()


def _free(workers: list[Worker], jobs: int, answers: Answers) -> Worker | None:
    """Return a worker without a command, which may be new; None if `jobs` commands are running."""
    living = [worker for worker in workers if worker.process.poll() is None]
    for worker in living:
        if worker.command is None:
            return worker
    if len(living) >= jobs:
        return None
    workers.append(Worker(answers))
    return workers[-1]


def run_all(
    commands: Sequence[Sequence[str]],
    jobs: int,
    ended: Callable[[int, str | None], None],
    started: Callable[[int], None] = lambda i: None,
) -> None:
    """Run `everloop WORDS` for each of `commands` in worker processes.

    An error in a callback, Ctrl-C and SIGTERM stop all processes.

    Args:
        commands: The words of each command after `everloop`.
        jobs: Number of commands that run at the same time, 1 or more.
        ended: Called when a command has ended, with its position in `commands` and the last line of
            its error, or None if it succeeded.
        started: Called before a command begins, with its position in `commands`.
    """
    waiting = deque(enumerate(commands))
    answers: Answers = SimpleQueue()
    workers: list[Worker] = []
    try:
        while waiting or any(worker.command is not None for worker in workers):
            while waiting and (worker := _free(workers, jobs, answers)):
                i, words = waiting.popleft()
                started(i)
                worker.run(i, words)
            worker, said = answers.get()
            done, worker.command = worker.command, None
            if done is not None:  # else the process of a finished command has ended
                ended(done, said)
    finally:
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.close()
