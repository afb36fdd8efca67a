"""`everloop resume`: go on with a run that was stopped, killed or has failed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from everloop.loop import Checkpoint, CheckpointError, Result
from everloop.loop.checkpoint import checkpoints, is_exact
from everloop.scenarios.environment import versions
from everloop.scenarios.experiment import Experiment
from everloop.scenarios.folder import CHECKPOINTS, CONFIG, complete
from everloop.scenarios.guards import CHANGEABLE, changed
from everloop.scenarios.rebuild import read_experiment
from everloop.scenarios.run_command import (
    Ready,
    console_for,
    execute,
    hide_library_bars,
    say,
    show,
)
from everloop.scenarios.status import is_locked, read_status


@dataclass(frozen=True)
class Resume:
    """The settings of `everloop resume`.

    Args:
        folder: Folder of the run.
        checkpoint: Name of the checkpoint to go on from, such as step-4096. By default the last one
            from which the run ends as if it had not been stopped.
        force: Go on although the settings or versions have changed since. The result may then
            differ from that of a run that was not stopped.
        checkpoint_every: World steps between two checkpoints; by default as before.
        keep_best: Measure at whose best value a checkpoint is kept; by default as before.
        max_loss: Training loss that counts as divergence, above 0; by default as before.
        on_divergence: stop, or rollback to go back with half the learning rate; by default as
            before.
        max_rollbacks: The largest number of rollbacks in the whole run; by default as before.
        quiet: Print errors only, and the result if --json is given.
        json: Print the result as a JSON object. Progress then goes to the standard error output.
    """

    folder: Path
    checkpoint: str | None = None
    force: bool = False
    checkpoint_every: int | None = None
    keep_best: str | None = None
    max_loss: float | None = None
    on_divergence: Literal["stop", "rollback"] | None = None
    max_rollbacks: int | None = None
    quiet: bool = False
    json: bool = False


def prepare_resume(asked: Resume) -> Ready:
    """Check what the folder holds, and return what to do.

    Raises:
        ValueError: In one line, if the run can't go on.
    """
    folder = asked.folder
    hide_library_bars(asked.quiet)
    if is_locked(folder):
        raise ValueError(f"another process is running {folder}; wait for it, or stop it")
    status = read_status(folder)
    if complete(folder) and (status is None or status.status == "finished"):
        return partial(_already_complete, asked)
    experiment, checkpoint = read_experiment(folder), chosen(folder, asked.checkpoint)
    saving = {"checkpoint_every": asked.checkpoint_every, "keep_best": asked.keep_best}
    experiment.saving = {
        name: checkpoint.about.get("saving", {}).get(name) if value is None else value
        for name, value in saving.items()
    }
    guards = {name: getattr(asked, name) for name in CHANGEABLE}
    experiment.guards = changed(experiment.guards, **guards)
    changes = _changes(checkpoint, experiment)
    if changes and not asked.force:
        raise ValueError(
            f"{'; '.join(changes[:3])}; undo that, or go on with other results by --force"
        )
    return partial(_go_on, experiment, checkpoint, [*changes, *_newer(checkpoint)], asked)


def chosen(folder: Path, name: str | None) -> Checkpoint:
    """Return the checkpoint of the run in `folder` to go on from.

    Args:
        folder: Folder of the run.
        name: Name of the checkpoint; None for the last exact one.

    Raises:
        ValueError: In one line, if there is none or it is damaged. It names another one.
    """
    found = checkpoints(folder / CHECKPOINTS)
    if not found:
        again = f"everloop run --config {folder / CONFIG} --out {folder} --overwrite"
        raise ValueError(f"{folder} has no checkpoint yet; start it over: {again}")
    if name is None:
        exact = [path for path in found if is_exact(path)]
        wanted = (exact or found)[-1]
        # A damaged manifest does not say whether it is exact.
        wanted = next((path for path in reversed(found) if not _readable(path)), wanted)
    elif (folder / CHECKPOINTS / name) in found:
        wanted = folder / CHECKPOINTS / name
    else:
        names = ", ".join(path.name for path in found)
        raise ValueError(f"{folder} has no checkpoint {name!r}; choose one of {names}")
    try:
        return Checkpoint.open(wanted)
    except CheckpointError as error:
        before = [path.name for path in found if path != wanted and _readable(path)]
        offer = (
            f"go on from another one: everloop resume {folder} --checkpoint {before[-1]}"
            if before
            else "there is no other one"
        )
        raise ValueError(f"{error}; {offer}") from None


def _readable(path: Path) -> bool:
    try:
        Checkpoint.open(path)
    except CheckpointError:
        return False
    return True


def _changes(checkpoint: Checkpoint, experiment: Experiment) -> list[str]:
    """Return a line for each setting and version that has changed since the checkpoint."""
    settings = json.loads(json.dumps(experiment.config(), default=str))
    return [
        *_differences("", checkpoint.about.get("config", {}), settings),
        *_differences("the version of ", checkpoint.about.get("packages", {}), versions()),
    ]


def _differences(what: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    names = [*before, *(name for name in now if name not in before)]
    return [
        f"{what}{name} is {now.get(name)}, but was {before.get(name)} when the run was saved"
        for name in names
        if before.get(name) != now.get(name) and name not in CHANGEABLE
    ]


def _newer(checkpoint: Checkpoint) -> list[str]:
    """Return what to know about the choice of the checkpoint."""
    if checkpoint.inexact is not None:
        return [f"the run goes on, but not as if it had not been stopped: {checkpoint.inexact}"]
    newest = checkpoints(checkpoint.folder.parent)[-1]
    if newest == checkpoint.folder:
        return []
    try:
        why = Checkpoint.open(newest).inexact
    except CheckpointError as error:
        return [f"a newer checkpoint is left out: {error}"]
    left_out = f"{newest.name} is newer" if why is None else f"{newest.name} is not exact: {why}"
    return [f"{left_out}; --checkpoint {newest.name} goes on from there"]


def _already_complete(asked: Resume) -> int:
    console = console_for(asked.quiet, asked.json, [])
    say(console, f"{asked.folder} is already complete")
    result = Result.load(asked.folder)
    title = f"{result.scenario} {'+'.join(result.strategies)} seed {result.seed}"
    return show(result, title, asked.folder, console, asked.json)


def _go_on(
    experiment: Experiment, checkpoint: Checkpoint, notes: Sequence[str], asked: Resume
) -> int:
    console = console_for(asked.quiet, asked.json, notes)
    title = f"{experiment.title} seed {experiment.seed}"
    say(console, f"{title}: going on from {checkpoint.folder}")
    return execute(experiment, title, asked.folder, console, asked.json, checkpoint)
