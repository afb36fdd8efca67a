"""Threads that prepare a stream's next observations."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy.typing as npt

from everloop.envs.chain import Chain
from everloop.envs.mixture import Presentations

Inputs = npt.NDArray[Any]


class Prefetch:
    """Threads that prepare the next batches of the current pass ahead of time.

    Args:
        prepare: `prepare(presentations)` turns (FIELDS, n) into inputs (n, ...). It must be safe
            to call from several threads.
        workers: Number of threads, and of batches to prepare ahead.
    """

    def __init__(self, prepare: Callable[[Presentations], Inputs], workers: int) -> None:
        self._prepare = prepare
        self._depth = workers
        self._threads = ThreadPoolExecutor(workers)
        # batches by chain, pass and position in the pass, in the order in which they are due
        self._queue: deque[tuple[tuple[int, int, int], Future[Inputs]]] = deque()

    def inputs(self, key: int, chain: Chain, batch: Presentations) -> Inputs:
        """Return the inputs of `batch` and start to prepare the batches that follow.

        Args:
            key: Number of the chain.
            chain: The chain.
            batch: What was taken last from the chain, (FIELDS, n).
        """
        n = batch.shape[1]
        due = (key, chain.epoch, chain.cursor - n)
        while self._queue and self._queue[0][0] != due:
            self._queue.popleft()[1].cancel()
        inputs = self._queue.popleft()[1].result() if self._queue else self._prepare(batch)
        first = self._queue[-1][0][2] + n if self._queue else chain.cursor
        starts = range(first, chain.current.shape[1] - n + 1, n)
        for start in starts[: self._depth - len(self._queue)]:
            future = self._threads.submit(self._prepare, chain.current[:, start : start + n])
            self._queue.append(((key, chain.epoch, start), future))
        return inputs

    def clear(self) -> None:
        """Forget what has been prepared."""
        self._queue.clear()

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(cancel_futures=True)
