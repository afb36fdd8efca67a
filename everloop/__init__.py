"""Continual learning in a closed loop: worlds with tasks, agents, and methods against forgetting.

`import everloop` registers the worlds with Gymnasium and imports nothing heavier than Gymnasium.
The parts are `everloop.envs`, `everloop.agents`, `everloop.loop` and `everloop.scenarios`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from everloop import envs as envs

if TYPE_CHECKING:
    from everloop.scenarios.trained import Trained

__version__ = "0.1.0"


def load(folder: Path | str, checkpoint: str | None = None, device: str | None = None) -> Trained:
    """Return the trained agent of a run, which acts and predicts.

    Args:
        folder: Folder of the run, such as "runs/plant".
        checkpoint: Name of a checkpoint, such as "step-4096"; None for the last one.
        device: Device of the network, such as "cpu"; None for that of the run.

    Raises:
        ValueError: In one line, if there is no such run or checkpoint, or it is damaged, or this
            machine does not have the device.
    """
    from everloop.scenarios import trained

    return trained.load(folder, checkpoint, device)
