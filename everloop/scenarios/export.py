"""`everloop export`: the trained network for programs without everloop."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from everloop.contract import Task
from everloop.envs import find_task
from everloop.envs.data.optional import needed
from everloop.loop import Learner
from everloop.loop.disk import remove, rename
from everloop.loop.evaluate import viewed
from everloop.scenarios.rebuild import trained

Format = Literal["torch", "onnx", "sb3"]
SUFFIXES: dict[Format, str] = {"torch": ".pt2", "onnx": ".onnx", "sb3": ".zip"}
TOLERANCE = 1e-4
"""Largest difference between the exported program's outputs and the network's."""


@dataclass(frozen=True)
class Export:
    """The settings of `everloop export`.

    Args:
        folder: Folder of the run.
        format: torch for a program of torch.export, onnx for ONNX, sb3 for a zip that the algorithm
            of Stable-Baselines3 loads.
        out: File to write. By default export.pt2, export.onnx or export.zip in the run's folder.
        checkpoint: Name of the checkpoint, such as step-4096; by default the last one.
        task: Name or number of the task, if a strategy has a network for each.
        overwrite: Replace the file if it exists.
    """

    folder: Path
    format: Format = "torch"
    out: Path | None = None
    checkpoint: str | None = None
    task: str | None = None
    overwrite: bool = False


class Step(nn.Module):
    """One step of a network, with its memory in and out.

    Args:
        learner: The learner of the network.
    """

    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.network = learner.module

    def forward(self, obs: dict[str, Tensor], state: Tensor, start: Tensor) -> tuple[Tensor, ...]:
        """Return prediction (B, P), the next state (B, H) and, with a value head, values (B,).

        Args:
            obs: Observations by modality, (B, ...).
            state: The memory before the step, (B, H).
            start: bool (B,), True where an episode begins.
        """
        rows = {name: x[None] for name, x in obs.items()}
        output, after = self.network(rows, state, start[None])
        values = () if output.value is None else (output.value[0],)
        return output.prediction[0], after, *values


def export(asked: Export) -> Path:
    """Write the trained network of a run, and return the file.

    Raises:
        FileExistsError: If the file exists and `overwrite` is False.
        ImportError: If a package that the format needs is not installed.
        OSError: If the file can't be written.
        ValueError: In one line, if the run has no checkpoint, or its network can't be exported.
    """
    out = asked.out or asked.folder / f"export{SUFFIXES[asked.format]}"
    if out.exists() and not asked.overwrite:
        raise FileExistsError(f"{out} exists; give another --out, or replace it by --overwrite")
    if asked.format == "onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            needed(package, "onnx", "an export to ONNX")
    experiment, _ = trained(asked.folder, asked.checkpoint)
    learner = experiment.learner
    writers: dict[Format, Callable[[Learner, Path], None]] = {
        "torch": _torch,
        "onnx": _onnx,
        "sb3": _sb3,
    }
    temporary = out.with_name(f".{out.name}.tmp{out.suffix}")
    try:
        task = _task(learner, asked.task)
        with viewed(learner, learner.strategies, task), _constant(learner.module), torch.no_grad():
            writers[asked.format](learner, temporary)
        rename(temporary, out)
    finally:
        remove(temporary)
        for world in (learner.world, experiment.evaluation, experiment.rollouts):
            if world is not None:
                world.close()
    return out


def _task(learner: Learner, name: str | None) -> Task:
    """Return the task in whose view the network is exported."""
    tasks = learner.world.tasks
    if name is not None:
        known = any(task.name == name for task in tasks)
        return find_task(tasks, int(name) if name.isdigit() and not known else name)
    own = [strategy.name for strategy in learner.strategies if strategy.traits.task_id]
    if own:
        raise ValueError(
            f"{own[0]} has a network for each task; choose one by --task, such as {tasks[0].name}"
        )
    return tasks[0]


def _example(learner: Learner, rows: int) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Return observations of the world, a memory and starts, as the arguments of a step."""
    obs, _ = learner.world.reset(seed=0)
    copies = np.arange(rows) % learner.world.num_envs
    shown = {name: torch.as_tensor(x[copies]).to(learner.device) for name, x in obs.items()}
    empty = learner.initial_state(rows)
    generator = torch.Generator().manual_seed(0)
    state = torch.rand(empty.shape, generator=generator).to(empty)
    return shown, state, torch.arange(rows, device=learner.device) % 2 == 0


def _dynamic(obs: Mapping[str, Tensor]) -> Any:
    """Return which axes of the arguments have any length: the first one of each."""
    batch = torch.export.Dim("batch", min=1)
    return {name: {0: batch} for name in obs}, {0: batch}, {0: batch}


def _torch(learner: Learner, file: Path) -> None:
    arguments = _example(learner, 3)
    with _quiet(), _refused("torch.export"):
        program = torch.export.export(
            Step(learner).eval(), arguments, dynamic_shapes=_dynamic(arguments[0])
        )
        torch.export.save(program, file)
        loaded = torch.export.load(file).module()
    _compare(learner, lambda *given: loaded(*given))


def _onnx(learner: Learner, file: Path) -> None:
    import onnxruntime

    arguments = _example(learner, 3)
    names = [*arguments[0], "memory", "start"]
    with _quiet(), _refused("ONNX"):
        program = torch.onnx.export(
            Step(learner).eval(),
            arguments,
            dynamo=True,
            dynamic_shapes=_dynamic(arguments[0]),
            input_names=names,
            output_names=["prediction", "next_memory", "value"][: len(_own(learner, arguments))],
            verbose=False,
        )
        assert program is not None, "an export with dynamo returns a program"
        program.save(str(file))
        session = onnxruntime.InferenceSession(str(file))

    def run(obs: dict[str, Tensor], state: Tensor, start: Tensor) -> Any:
        given = {**obs, "memory": state, "start": start}
        known = {entry.name for entry in session.get_inputs()}
        return session.run(None, {k: x.cpu().numpy() for k, x in given.items() if k in known})

    _compare(learner, run)


def _sb3(learner: Learner, file: Path) -> None:
    model = getattr(learner, "model", None)
    if model is None or hasattr(model, "_last_lstm_states"):
        what = "a stream" if model is None else "RecurrentPPO"
        raise ValueError(
            f"the run is of {what}, of which Stable-Baselines3 has no file that predicts alone; "
            "use --format torch or onnx"
        )
    with _quiet():
        model.save(file)


def _own(learner: Learner, arguments: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """Return what the learner's own forward pass gives for the arguments of a step."""
    obs, state, start = arguments
    rows = {name: x[None] for name, x in obs.items()}
    output, after = learner.apply(learner.module, rows, state, start[None])
    values = () if output.value is None else (output.value[0],)
    return output.prediction[0], after, *values


def _compare(learner: Learner, run: Callable[..., Any]) -> None:
    """Check that an exported program gives what the learner gives, for another batch size."""
    arguments = _example(learner, 5)
    with _quiet(), _refused("the exported program"):
        found = run(*arguments)
    for ours, theirs in zip(_own(learner, arguments), found, strict=True):
        other = torch.as_tensor(np.asarray(theirs.cpu() if isinstance(theirs, Tensor) else theirs))
        if not torch.allclose(ours.cpu().float(), other.float(), atol=TOLERANCE, rtol=TOLERANCE):
            raise ValueError(
                "the exported network gives other outputs than the run's own: a strategy "
                "classifies by something else than these outputs, which can't be exported"
            )


@contextmanager
def _constant(module: nn.Module) -> Iterator[None]:
    """Detach what layers keep beside their weights, such as masks, so that it is exported as is."""
    stores: list[dict[str, Any]] = [
        store for part in module.modules() for store in (vars(part), part._buffers)
    ]
    kept = [
        (store, name, value)
        for store in stores
        for name, value in store.items()
        if isinstance(value, Tensor) and value.requires_grad
    ]
    for store, name, value in kept:
        store[name] = value.detach()
    try:
        yield
    finally:
        for store, name, value in kept:
            store[name] = value


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the warnings and prints of torch's exporters from the user."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


@contextmanager
def _refused(what: str) -> Iterator[None]:
    """Turn any error of torch's exporters into one line."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # an exporter can raise anything
        line = " ".join(str(error).split())[:200]
        raise ValueError(
            f"the network can't be exported by {what} ({type(error).__name__}: {line}); try "
            "another format"
        ) from error


def show_export(asked: Export) -> int:
    """Export, print what was written, and return the exit status."""
    print(f"written: {export(asked)}")
    return 0
