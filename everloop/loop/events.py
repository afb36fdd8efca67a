"""A file of TensorBoard events, written by the one who calls: no thread stands between an error and its cause."""

from __future__ import annotations

import io
import os
import socket
import time
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_numbers = count()


class EventFile:
    """Writes summaries into a new events file of `folder`. Raises OSError where that can't be written."""

    def __init__(self, folder: Path) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_numbers)}"
        self._event: Any = Event
        self._file = (folder / name).open("wb")
        self._records = RecordWriter(self._file)
        self._write(file_version="brain.Event:2")

    def _write(self, **content: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), **content).SerializeToString())

    def add(self, summary: Any, step: int = 0) -> None:
        """A summary, as `torch.utils.tensorboard.summary` makes them."""
        self._write(summary=summary, step=step)

    def scalar(self, tag: str, value: float, step: int) -> None:
        """A point of the curve `tag`."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        self.add(Summary(value=[Summary.Value(tag=tag, simple_value=value)]), step)

    def figure(self, tag: str, figure: Figure, step: int) -> None:
        """A picture."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        width, height = (int(size) for size in figure.get_size_inches() * figure.dpi)
        image = Summary.Image(encoded_image_string=buffer.getvalue(), width=width, height=height, colorspace=4)
        self.add(Summary(value=[Summary.Value(tag=tag, image=image)]), step)

    def flush(self) -> None:
        """Let readers see what has been written."""
        self._file.flush()

    def close(self) -> None:
        """Nothing more is written."""
        self._file.close()
