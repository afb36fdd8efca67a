"""Writing files of TensorBoard events."""

from __future__ import annotations

import contextlib
import io
import os
import re
import socket
import time
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Setting = bool | float | str
FLUSH_SECONDS = 10.0  # longest time until TensorBoard can see an event
PREFIX = "events.out.tfevents."


class EventFile:
    """Writes TensorBoard events in the caller's thread, so that errors are raised where they occur.

    After an error or `close`, nothing more can be written, and `close` does nothing.

    Args:
        folder: Folder for the file. It is created if it does not exist.

    Raises:
        OSError: Here or in any method, if the file can't be opened or written. The message is one
            line that names the file.
    """

    def __init__(self, folder: Path | str) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.path = _next_path(Path(folder))
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("xb")
        except OSError as error:
            raise self._error(error) from None
        self._event, self._records = Event, RecordWriter(self._file)
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        self.flush()

    @property
    def closed(self) -> bool:
        """True after `close`, or after an error."""
        return self._file.closed

    def flush(self) -> None:
        """Flush to the file, so that TensorBoard can see what was written."""
        try:
            self._file.flush()
        except OSError as error:
            self._fail(error)
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Flush and close the file."""
        try:
            self._file.close()
        except OSError as error:
            raise self._error(error) from None

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add one point to each curve, tag -> value, at `step`."""
        self.add([{"tag": tag, "simple_value": value} for tag, value in values.items()], step)

    def resume(self, step: int) -> None:
        """Make TensorBoard drop what earlier files in the folder hold from `step` on."""
        from tensorboard.compat.proto.event_pb2 import SessionLog

        log = SessionLog(status=SessionLog.START)
        self._write(self._event(wall_time=time.time(), step=step, session_log=log))

    def figure(self, tag: str, figure: Figure, step: int) -> None:
        """Add a figure at `step`."""
        stream = io.BytesIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph")  # the font lacks some scripts
            figure.savefig(stream, format="png")
        width, height = (round(inches * figure.dpi) for inches in figure.get_size_inches())
        picture = {
            "height": height,
            "width": width,
            "colorspace": 4,
            "encoded_image_string": stream.getvalue(),
        }
        self.add([{"tag": tag, "image": picture}], step)

    def text(self, tag: str, markdown: str) -> None:
        """Add a card to the Text page."""
        from tensorboard.plugins.text.metadata import create_summary_metadata
        from tensorboard.util.tensor_util import make_tensor_proto

        metadata = create_summary_metadata(display_name=tag, description="")
        tensor = make_tensor_proto([markdown.encode()])
        self.add([{"tag": tag, "metadata": metadata, "tensor": tensor}], 0)

    def charts(self, category: str, charts: Mapping[str, str]) -> None:
        """Add a category to the Custom Scalars page.

        Args:
            category: Title of the category.
            charts: Title of a chart -> regular expression of the tags that it shows.
        """
        from tensorboard.plugins.custom_scalar import metadata
        from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
        from tensorboard.util.tensor_util import make_tensor_proto

        content = [{"title": t, "multiline": {"tag": [regex]}} for t, regex in charts.items()]
        layout = Layout(category=[{"title": category, "chart": content}])
        value = {
            "tag": metadata.CONFIG_SUMMARY_TAG,
            "metadata": metadata.create_summary_metadata(),
            "tensor": make_tensor_proto(layout.SerializeToString()),
        }
        self.add([value], 0)

    def settings(
        self,
        settings: Mapping[str, Setting],
        metrics: Mapping[str, str],
        first: Collection[str] = (),
    ) -> None:
        """Add a row to the HParams page.

        Args:
            settings: Columns. All runs that the page compares must have the same names.
            metrics: Tags of scalars, whose last values are columns too -> titles of these columns.
            first: Settings to show first. The page sorts the others by name.
        """
        from tensorboard.plugins.hparams import api_pb2 as api
        from tensorboard.plugins.hparams import metadata
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionStartInfo

        kinds: dict[type, tuple[str, Any]] = {
            bool: ("bool_value", api.DATA_TYPE_BOOL),
            float: ("number_value", api.DATA_TYPE_FLOAT64),
            str: ("string_value", api.DATA_TYPE_STRING),
        }
        types = {name: kinds[type(value)][1] for name, value in settings.items()}
        columns = [{"name": k, "type": t, "differs": k in first} for k, t in types.items()]
        measures = [{"name": {"tag": tag}, "display_name": name} for tag, name in metrics.items()]
        experiment = api.Experiment(hparam_infos=columns, metric_infos=measures)
        start = SessionStartInfo(start_time_secs=time.time())
        for name, value in settings.items():
            setattr(start.hparams[name], kinds[type(value)][0], value)
        self._hparams(metadata.EXPERIMENT_TAG, HParamsPluginData(experiment=experiment))
        self._hparams(metadata.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=start))

    def end(self, success: bool) -> None:
        """Mark the run as finished or failed on the HParams page."""
        from tensorboard.plugins.hparams import api_pb2 as api
        from tensorboard.plugins.hparams import metadata
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo

        status = api.STATUS_SUCCESS if success else api.STATUS_FAILURE
        end = SessionEndInfo(status=status, end_time_secs=time.time())
        self._hparams(metadata.SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=end))

    def _hparams(self, tag: str, content: Any) -> None:
        """Add data for the HParams page."""
        from tensorboard.plugins.hparams.metadata import NULL_TENSOR, create_summary_metadata

        data = create_summary_metadata(content)
        self.add([{"tag": tag, "metadata": data, "tensor": NULL_TENSOR}], 0)

    def add(self, values: Any, step: int) -> None:
        """Add the values of one Summary at `step`."""
        self._write(self._event(wall_time=time.time(), step=step, summary={"value": values}))
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def _write(self, event: Any) -> None:
        """Write one event."""
        if self.closed:
            raise OSError(f"{self.path} is closed; make a new one for another run")
        try:
            self._records.write(event.SerializeToString())
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        """Close the file, and raise the error with a clear message."""
        with contextlib.suppress(OSError):  # closing tries to flush once more
            self._file.close()
        raise self._error(error) from None

    def _error(self, error: OSError) -> OSError:
        """Return the error to raise."""
        what = f"TensorBoard events can't be written to {self.path}"
        return OSError(f"{what}: {error.strerror or error}; free space, or choose another folder")


def _next_path(folder: Path) -> Path:
    """Return a path whose name is after those of all event files in the folder.

    TensorBoard reads the files of a folder in the order of their names, and a resumed run may begin
    within the second in which the killed one has.
    """
    now = time.time_ns() // 1000
    latest = max((path.name for path in folder.glob(f"{PREFIX}*")), default="")
    if (found := re.match(r"(\d{10})\.(\d{6})?", latest.removeprefix(PREFIX))) is not None:
        now = max(now, int(found[1] + (found[2] or "999999")) + 1)
    moment = f"{now // 10**6:010d}.{now % 10**6:06d}"
    return folder / f"{PREFIX}{moment}.{socket.gethostname()}.{os.getpid()}"
