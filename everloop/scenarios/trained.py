"""The trained agent of a run: it acts in worlds and labels examples outside of the run."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from torch import Tensor, nn

from everloop.contract import CUE, Observation, Task, World
from everloop.envs import find_task
from everloop.loop import Checkpoint, Result, Strategy, Training
from everloop.loop.evaluate import viewed
from everloop.loop.state import generators, load_generators
from everloop.scenarios.experiment import Experiment
from everloop.scenarios.formats import as_batch, with_channel
from everloop.scenarios.rebuild import trained

CHUNK = 256
"""Examples that `predict` puts through the network at once."""

Key = Task | int | str
"""A task, its id or its name."""


def load(
    folder: Path | str, checkpoint: str | None = None, device: torch.device | str | None = None
) -> Trained:
    """Return the trained agent of a run.

    The global generators of random numbers and torch's number of threads stay as they are.

    Args:
        folder: Folder of the run, complete or not.
        checkpoint: Name of a checkpoint, such as "step-4096"; None for the last one.
        device: Device of the network, such as "cpu"; None for that of the run.

    Raises:
        ValueError: In one line, if there is no such run or checkpoint, or it is damaged, or this
            machine does not have the device.
    """
    before, threads = generators(), torch.get_num_threads()
    try:
        experiment, found = trained(
            Path(folder), checkpoint, None if device is None else str(device)
        )
    finally:
        torch.set_num_threads(threads)
        load_generators(before)
    agent = Trained(experiment, found)
    return agent if device is None else agent.to(device)


class Trained:
    """The agent of a run as it was at a checkpoint. It acts and predicts, and learns no more.

    The network is in evaluation mode. It acts as in the run's evaluations: with the most probable
    action, and in the strategies' view of the task (their masks, adapters and classifiers).

    Args:
        experiment: The experiment, whose learner has learned what the checkpoint holds. Its worlds
            are closed.
        checkpoint: The checkpoint.

    Attributes:
        tasks: The tasks of the world.
        checkpoint: Where the agent comes from.
        result: The run's result up to the checkpoint.
        learner: The learner.
    """

    def __init__(self, experiment: Experiment, checkpoint: Checkpoint) -> None:
        self._experiment, self.checkpoint = experiment, checkpoint
        self.learner = experiment.learner
        self.tasks = tuple(experiment.evaluation.tasks)
        self.result = Result.from_dict(checkpoint.state("result"))
        for world in (self.learner.world, experiment.evaluation, experiment.rollouts):
            if world is not None:
                world.close()
        self.learner.networks.eval()
        self._memory: Tensor | None = None  # of the episodes in progress, (B, H)
        self._chosen: Task | None = None  # by `view`
        self._opened: Task | None = None  # whose view the network is in
        self._views = ExitStack()

    @property
    def module(self) -> nn.Module:
        """The network, in the view that `view` has chosen, if any."""
        self._open(self._chosen)
        return self.learner.module

    @property
    def observation_space(self) -> spaces.Dict:
        """The space of one observation: a dict of modalities."""
        space = self.learner.world.single_observation_space
        assert isinstance(space, spaces.Dict), "a world has named modalities"
        return space

    def world(self, num_envs: int = 1) -> World:
        """Return copies of the world in which the run was evaluated. Close it after use.

        Args:
            num_envs: Number of copies, 1 or more.
        """
        return self._experiment.scenario.make_world("test", num_envs, self._experiment.seed)

    def act(
        self,
        obs: Observation,
        start: bool | npt.NDArray[np.bool_] | None = None,
        task: Key | None = None,
    ) -> Any:
        """Return the most probable action for one observation, or (B, ...) for a batch.

        The state of a recurrent memory is kept from call to call. The first call, and the first
        one after `reset`, begins new episodes.

        Args:
            obs: Modality name -> its value: of one observation, as the environments of `gym.make`
                return it, or of a batch (B, ...), as vector environments do. A missing cue is
                filled in from the task.
            start: Which episodes begin with this observation, (B,) or one bool for all. None for
                none.
            task: The task, its id or its name. By default the one that `view` has chosen, else
                the one that the cues show.

        Raises:
            ValueError: In one line, if the observation has another format than the world's, the
                network needs a task and none is given, or the batch has another size than the
                episodes in progress.
        """
        batch, single, chosen = self._observed(obs, task)
        size = len(next(iter(batch.values())))
        if size == 0:
            raise ValueError("the batch is empty; give at least one observation")
        begins = self._begins(size, start)
        self._open(chosen)
        memory = self.learner.initial_state(size) if self._memory is None else self._memory
        action, self._memory = self.learner.act(batch, memory, begins)
        return action[0] if single else action

    def reset(self) -> None:
        """Begin new episodes: the next observation meets an empty memory."""
        self._memory = None

    def predict(self, inputs: Any, task: Key | None = None) -> npt.NDArray[np.int64]:
        """Return the labels (B,) of examples, or the tags (B, L) of texts.

        Args:
            inputs: Examples (B, ...) in the world's own format: pictures uint8 (B, H, W, C), also
                (B, H, W) if they have one channel; vectors (B, D); token ids (B, L). Or a dict of
                modalities.
            task: The task, its id or its name. By default the one that `view` has chosen, else
                the one that the cues show.

        Raises:
            ValueError: In one line, if the world has no labels, the examples have another format
                than the world's, or the network needs a task and none is given.
        """
        if not self.learner.labelled:
            raise ValueError("the world has no labels to predict; choose actions with act")
        names = [name for name in self.observation_space if name != CUE]
        if not isinstance(inputs, dict):
            if len(names) > 1:
                raise ValueError(
                    f"the world has several modalities; give a dict of {', '.join(names)}"
                )
            inputs = {names[0]: with_channel(inputs, self.observation_space[names[0]])}
        batch, single, chosen = self._observed(inputs, task)
        if single:
            raise ValueError("this is one example; give a batch, such as inputs[None]")
        self._open(chosen)
        size = len(next(iter(batch.values())))
        empty = np.zeros((0, *(self.learner.world.single_action_space.shape or ())), np.int64)
        chunks = [
            self._labels({name: value[i : i + CHUNK] for name, value in batch.items()})
            for i in range(0, size, CHUNK)
        ]
        return np.concatenate([empty, *chunks])

    def _labels(self, batch: Observation) -> npt.NDArray[np.int64]:
        size = len(next(iter(batch.values())))
        state = self.learner.initial_state(size)
        labels, _ = self.learner.act(batch, state, np.ones(size, dtype=np.bool_))
        return labels.astype(np.int64, copy=False)

    def view(self, task: Key | None) -> View:
        """Choose the task of all calls that name none, until another one is chosen.

            agent.view("2-3")           from now on
            with agent.view("2-3"):     only inside

        Args:
            task: The task, its id or its name; None for no task.

        Raises:
            ValueError: If there is no such task.
        """
        before = self._chosen
        self._chosen = None if task is None else self._find(task)
        self._open(self._chosen)
        return View(self, before)

    def to(self, device: torch.device | str) -> Self:
        """Move the network, and what the strategies store, to a device such as "cuda".

        Raises:
            ValueError: If this machine does not have it.
        """
        place = Training(device=str(device)).find_device()
        self._open(None)
        learned = self.learner.learned()
        self.learner.networks.to(place)
        self.learner.load_learned(learned)
        self._memory = None if self._memory is None else self._memory.to(place)
        self._open(self._chosen)
        return self

    def _find(self, task: Key) -> Task:
        return find_task(self.tasks, task.id if isinstance(task, Task) else task)

    @property
    def _choices(self) -> str:
        return f"give task=, one of {', '.join(task.name for task in self.tasks)}"

    def _observed(self, obs: Any, given: Key | None) -> tuple[Observation, bool, Task]:
        """Return a checked batch with its cue, whether `obs` is one observation, and the task.

        The task is the given one, else the chosen one, else the one that all cues show. Without
        any, if the network needs none, it is the first one, which stands for all.
        """
        batch, single = as_batch(obs, self.observation_space)
        task = self._chosen if given is None else self._find(given)
        if CUE in self.observation_space.spaces and CUE not in batch:
            if task is None:
                raise ValueError(
                    f"the observation lacks {CUE}, which shows the task; {self._choices}"
                )
            size = len(next(iter(batch.values())))
            batch[CUE] = np.zeros((size, len(self.tasks)), self.observation_space[CUE].dtype)
            batch[CUE][:, task.id] = 1
        elif task is None and CUE in batch and len(batch[CUE]):
            shown = batch[CUE].argmax(-1)
            task = self.tasks[shown[0]] if (shown == shown[0]).all() else None
        if task is None:
            for strategy in self.learner.strategies:
                if _needs_task(strategy):
                    raise ValueError(f"{strategy.name} needs one task; {self._choices}")
        ordered = {name: batch[name] for name in self.observation_space}
        return ordered, single, task or self.tasks[0]

    def _begins(
        self, size: int, start: bool | npt.NDArray[np.bool_] | None
    ) -> npt.NDArray[np.bool_]:
        """Return which episodes begin, (B,), and drop the memory of those before if all do."""
        given = np.asarray(False if start is None else start)
        if given.dtype != np.bool_ or given.shape not in ((), (size,)):
            raise ValueError(
                f"start is {given.dtype} of shape {given.shape}; it must be one bool, or bool "
                f"({size},)"
            )
        begins = np.array(np.broadcast_to(given, size))
        if self._memory is not None and len(self._memory) != size:
            if self._remembers and not begins.all():
                raise ValueError(
                    f"the batch has {size} observation{'s' * (size != 1)}, but "
                    f"{len(self._memory)} in the episodes in progress; call reset() first"
                )
            self._memory = None
        return begins if self._memory is not None else np.ones(size, dtype=np.bool_)

    @property
    def _remembers(self) -> bool:
        """True if the memory holds anything that matters for the next action."""
        assert self._memory is not None
        empty = self.learner.initial_state(len(self._memory))
        return not self.learner.labelled and not torch.equal(self._memory, empty)

    def _open(self, task: Task | None) -> None:
        """Put the network into the strategies' view of `task`, or into none.

        A view stays open between calls, because opening one may cost far more than an action.
        """
        if task == self._opened:
            return
        self._views.close()
        self._opened = None
        if task is not None:
            self._views.enter_context(viewed(self.learner, self.learner.strategies, task))
            self._opened = task


class View:
    """The choice of a task. As a context manager it ends with the block."""

    def __init__(self, agent: Trained, before: Task | None) -> None:
        self._agent, self._before = agent, before

    def __enter__(self) -> Trained:
        return self._agent

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._agent.view(self._before)


def _needs_task(strategy: Strategy) -> bool:
    """Return whether the strategy's view differs from task to task, with its present settings."""
    without = strategy.traits.without_task_id
    return strategy.traits.task_id and not (
        without and all(getattr(strategy, name, None) == value for name, value in without.items())
    )
