"""Rebuild the experiment of a run from its folder, with what it has learned."""

from __future__ import annotations

from pathlib import Path

import torch

from everloop.loop import Checkpoint
from everloop.loop.checkpoint import checkpoints
from everloop.scenarios import arguments
from everloop.scenarios.experiment import Experiment
from everloop.scenarios.folder import CHECKPOINTS, CONFIG


def read_experiment(folder: Path, device: str | None = None) -> Experiment:
    """Return the experiment whose config.yaml is in `folder`, ready to run.

    It sets torch's number of threads to that of the run.

    Args:
        folder: Folder of the run.
        device: Device that replaces the setting training.device, where the scenario has it.

    Raises:
        ValueError: In one line, if there is none or it can't be built.
    """
    if not (folder / CONFIG).exists():
        raise ValueError(f"{folder} holds no run: it has no {CONFIG}")
    request = arguments.read(["--config", str(folder / CONFIG)])
    torch.set_num_threads(request.values["threads"])
    if device is not None and "training.device" in request.values:
        request.values["training.device"] = device
    # A checkpoint holds all weights, so those that the run has started from may be gone.
    init_from, request.values["init_from"] = request.values["init_from"], None
    experiment = request.experiment(request.strategies[0], request.seeds[0], None)
    experiment.init_from, experiment.out = init_from, folder
    return experiment


def trained(
    folder: Path, name: str | None = None, device: str | None = None
) -> tuple[Experiment, Checkpoint]:
    """Return the experiment of a run, whose learner has learned what the run has.

    Its strategies are attached, so that their views can be opened.

    Args:
        folder: Folder of the run.
        name: Name of a checkpoint, such as step-4096; None for the last one.
        device: Device that replaces the setting training.device; None for the run's.

    Raises:
        ValueError: In one line, if there is no such checkpoint, or it is damaged.
    """
    experiment = read_experiment(folder, device)
    found = {path.name: path for path in checkpoints(folder / CHECKPOINTS)}
    if not found:
        raise ValueError(f"{folder} has no checkpoint, so what it has learned is unknown")
    if name is not None and name not in found:
        raise ValueError(f"{folder} has no checkpoint {name!r}; choose one of {', '.join(found)}")
    checkpoint = Checkpoint.open(list(found.values())[-1] if name is None else found[name])
    experiment.learner.attach(experiment.strategies)
    learned = checkpoint.state("learner", "learned")
    try:
        experiment.learner.load_learned(learned)
    except (LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(
            f"{checkpoint.folder} does not fit the run's settings ({type(error).__name__}: "
            f"{error}); use the version of everloop that wrote it"
        ) from error
    return experiment, checkpoint
