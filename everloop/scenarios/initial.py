"""The weights that a run starts from: those of another run, or of a file."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from everloop.loop.callbacks.checkpoints import WEIGHTS
from everloop.loop.checkpoint import checkpoints
from everloop.loop.weights import read_weights
from everloop.scenarios.folder import CHECKPOINTS
from everloop.scenarios.status import read_status


def initial_weights(source: Path) -> dict[str, Tensor]:
    """Return the weights and buffers of a network by name.

    Args:
        source: A safetensors file, or the folder of a run: its weights.safetensors if it has
            finished, else those of its latest checkpoint.

    Raises:
        ValueError: In one line, if there are none or they can't be read.
    """
    try:
        if not source.is_dir():
            return read_weights(source)
        status, file = read_status(source), source / WEIGHTS
        # A run that went on after it had been stopped has checkpoints that are newer than the file.
        finished = status is None or status.status == "finished"
        if file.exists() and (finished or not checkpoints(source / CHECKPOINTS)):
            return read_weights(file)
        from everloop.scenarios.trained import load  # which imports experiments

        return load(source).module.state_dict()
    except ValueError as error:
        raise ValueError(f"init_from is {source}: {error}") from None
