"""A labelled data set as episodic tasks: a step shows an example, the action is the guess."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from everloop.contract import ACCURACY, CUE, Metric, Observation
from everloop.envs.corruptions import Alteration, find_alterations, other_data
from everloop.envs.data.examples import Examples, check_pair
from everloop.envs.mixture import (
    EPOCH,
    FIELDS,
    INDEX,
    KEY,
    LABEL,
    OOD,
    ORIGIN,
    Mixture,
    Presentations,
    find_mixture,
)
from everloop.envs.prefetch import Prefetch
from everloop.envs.splits import SplitClasses, TaskSplit, find_task_split
from everloop.envs.supply import Supply
from everloop.envs.task import Mask, OneCopyEnv, TaskVectorEnv, find_task

Ints = npt.NDArray[np.int64]


class StreamVectorEnv(TaskVectorEnv):
    """Labelled examples as a batched world: one indexed read serves `num_envs` examples a step.

    Abstract; see the subclasses for images, texts and features.

    Each task's examples form an endless chain of shuffled passes. Over one pass every example is
    scored exactly once, however long the episodes are. An example is pending until a guess for it
    arrives: a reset does not skip it, and a switch to another task gives it back, to be shown
    first when its own task returns. A seeded reset of all copies restarts all chains. A chain
    depends on the seed and the task alone, not on the number of copies or workers.

    `reset(options={"task": [0, 2]})` asks for several tasks at once, for joint training. Their
    examples form one chain: a pass over it is a shuffled pass over the union of the tasks.

    Observation (Dict):
        The example, in the modality of the subclass.
        cue (if task_cue): One-hot of the task that the example belongs to, (num_tasks,).
    Action: The guess. Discrete; for tags MultiDiscrete, one entry per token. With
        `label_space="global"` a guess names one of the classes of all tasks, which are told apart
        (class-incremental). With `"within_task"` it names one of the classes of one task
        (domain-incremental; task-incremental if the cue shows the task).
    Reward: 1 for a correct guess, else 0; for tags the share of correct ones, from 0 to 1.
    Info about the example that was just scored:
        label: The true label in the label space; -1 for a token without a tag.
        index: Its position in the split.
        epoch: The pass in which it was presented, from 0.
        origin: The id of the task that it belongs to.
        leaked: True if that is none of the tasks that the copy plays.
        ood: True if it was altered.
    Info about the next example:
        task: The task that the copy plays; of several tasks the one that the example belongs to.
    Episode: `episode_length` examples, then truncated. `final_obs` already shows the next example.

    Args:
        num_envs: Number of copies, the batch size.
        data: (train, test) examples, or anything else that the subclass can load.
        task_split: How the data becomes tasks: a `TaskSplit`, or plain data such as
            {"kind": "classes", "classes_per_task": 2}.
        split: "train" or "test".
        label_space: "global" or "within_task", see above.
        task_cue: Whether the observation shows the task.
        episode_length: Steps per episode, 1 or more.
        mixture: What is mixed in with a task's examples in the train split: a `Mixture`, or plain
            data such as {"blur_ratio": 0.1}. The test split is always clean.
        ood_data: Inputs (N, ...) of another data set, each of the same shape and dtype. They add
            the alteration "other".
        workers: Number of threads that prepare the next observations while the learner learns
            from the last ones; 0 for none.
        autoreset_mode: SAME_STEP or DISABLED.

    Raises:
        ValueError: If an argument does not fit the data, or a task has no examples. The message
            is one line that names the value.
    """

    modality: ClassVar[str]

    def __init__(
        self,
        num_envs: int = 1,
        data: Any = None,
        task_split: TaskSplit | Mapping[str, Any] = SplitClasses(2),  # noqa: B008
        split: Literal["train", "test"] = "train",
        label_space: Literal["global", "within_task"] = "global",
        task_cue: bool = False,
        episode_length: int = 256,
        mixture: Mixture | Mapping[str, Any] = Mixture(),  # noqa: B008
        ood_data: npt.ArrayLike | None = None,
        workers: int = 0,
        autoreset_mode: AutoresetMode = AutoresetMode.SAME_STEP,
    ) -> None:
        if split not in ("train", "test"):
            raise ValueError(f"split is {split!r}; choose train or test")
        if label_space not in ("global", "within_task"):
            raise ValueError(f"label_space is {label_space!r}; choose global or within_task")
        for name, value, least in (("episode_length", episode_length, 1), ("workers", workers, 0)):
            if value < least:
                raise ValueError(f"{name} is {value}; it must be {least} or more")
        train, test = self._load(data)
        check_pair(train, test)
        self.horizon = episode_length
        self.task_cue = task_cue
        examples = train if split == "train" else test
        # plain views: indexing a memory map costs several times as much
        self._inputs = np.asarray(examples.inputs)
        self._labels = np.asarray(examples.labels)
        self._assign(find_task_split(task_split), train, test, split, label_space)
        self.mixture = find_mixture(mixture) if split == "train" else Mixture()
        self._check_order()
        self._alterations = self._find_alterations(ood_data)
        self.single_observation_space = self._observation_space(train)
        self.single_action_space = (
            spaces.Discrete(self._actions)
            if self._labels.ndim == 1
            else spaces.MultiDiscrete([self._actions] * self._labels.shape[1])
        )
        super().__init__(num_envs, autoreset_mode)
        self.reward_range = (0.0, 1.0)
        self._prefetch = Prefetch(self._show, workers) if workers else None
        self._seed = 0
        self._supply = Supply(num_envs, len(self.tasks), self._draw_pass)

    @staticmethod
    def _load(data: Any) -> tuple[Examples, Examples]:
        """Return (train, test) examples of whatever the user gave."""
        raise NotImplementedError

    @staticmethod
    def _input_space(data: Examples) -> spaces.Box:
        """Return the space of one example's inputs."""
        raise NotImplementedError

    def _observation_space(self, train: Examples) -> spaces.Dict:
        modalities: dict[str, spaces.Space[Any]] = {self.modality: self._input_space(train)}
        if self.task_cue:
            modalities[CUE] = spaces.Box(0.0, 1.0, (len(self.tasks),), np.float32)
        return spaces.Dict(modalities)

    def _assign(
        self, task_split: TaskSplit, train: Examples, test: Examples, split: str, label_space: str
    ) -> None:
        """Set the tasks, their examples' indices, their views and the table of labels."""
        assignment = task_split.assign(train, test)
        self.tasks = assignment.tasks
        self._view = assignment.view
        self._indices = assignment.train if split == "train" else assignment.test
        for task, indices in zip(self.tasks, self._indices, strict=True):
            if not len(indices):
                raise ValueError(
                    f"task {task.id} ({task.name}) has no example in the {split} split; leave the "
                    "task out, or give it at least one"
                )
        numbers = assignment.joint if label_space == "global" else assignment.within
        # one more column, so that the label -1 (no label) maps to itself
        self._table = np.pad(numbers, ((0, 0), (0, 1)), constant_values=-1)
        self._actions = int(numbers.max()) + 1
        known = [set(row[row >= 0].tolist()) for row in numbers]
        self._new_classes = sum(map(len, known)) == len(set().union(*known))

    def _check_order(self) -> None:
        ids = [task.id for task in self.tasks]
        order = ids if self.mixture.order is None else list(self.mixture.order)
        if not set(order) <= set(ids):
            raise ValueError(
                f"the mixture's order is {order}; it must hold ids from 0 to {len(ids) - 1}"
            )

    def _known_alterations(self) -> Mapping[str, Alteration]:
        """Return name -> alteration of an input."""
        raise NotImplementedError

    def _find_alterations(self, ood_data: Any) -> list[Alteration]:
        """Return the alterations that out-of-distribution examples are drawn from."""
        known = dict(self._known_alterations())
        if ood_data is not None:
            other = np.asarray(ood_data)
            shape = self._inputs.shape[1:]
            if other.shape[1:] != shape or other.dtype != self._inputs.dtype or not len(other):
                wanted = f"{self._inputs.dtype} (N, {', '.join(map(str, shape))})"
                raise ValueError(
                    f"ood_data is {other.dtype} of shape {other.shape}; it must be {wanted}"
                )
            known["other"] = other_data(other)
        names = list(known) if self.mixture.ood is None else self.mixture.ood
        return find_alterations(names, known)

    def examples(self, task: int | str | Sequence[int]) -> int:
        """Return the number of presentations in one pass over `task`, including what is mixed in.

        Args:
            task: An id or a name; or several ids, for one pass over the union of the tasks.

        Raises:
            ValueError: If there is no such task.
        """
        return self._pass_length(self._find_tasks(task), 0)

    def visit_length(self, task: int | str | Sequence[int], visit: int = 0) -> int:
        """Return the number of presentations in one visit to `task`, `mixture.passes` passes.

        Visits differ in length, because the tasks around them do.

        Args:
            task: As for `examples`.
            visit: Number of the visit, from 0.

        Raises:
            ValueError: If there is no such task.
        """
        tasks, passes = self._find_tasks(task), self.mixture.passes
        return sum(self._pass_length(tasks, visit * passes + epoch) for epoch in range(passes))

    def _pass_length(self, tasks: tuple[int, ...], epoch: int) -> int:
        sizes = [len(indices) for indices in self._indices]
        return self.mixture.pass_length(sizes, tasks, epoch)

    def show(self, task: int, rows: Ints) -> tuple[Observation, Ints]:
        """Return examples of `task` and their labels, without any effect on the stream.

        Args:
            task: Id of the task.
            rows: Their positions in the split, as in `info["index"]`, (n,).

        Returns:
            The observations, (n, ...), unaltered, and the labels, (n,) or (n, L).
        """
        presentations = np.zeros((FIELDS, len(rows)), dtype=np.int64)
        presentations[INDEX], presentations[ORIGIN] = rows, task
        inputs = self._show(presentations)
        return self._observation(inputs, presentations), self._label(presentations)

    def _label(self, presentations: Presentations) -> Ints:
        """Return the labels in the label space, (n,), or (n, L) for tags."""
        labels, origin = self._labels[presentations[INDEX]], presentations[ORIGIN]
        numbers: Ints = self._table[origin if labels.ndim == 1 else origin[:, None], labels]
        return numbers

    def _find_tasks(self, key: Any) -> tuple[int, ...]:
        """Return the ids of one task, or of several ones in ascending order."""
        several = isinstance(key, (list, tuple, np.ndarray)) and len(key) > 0
        keys = key if several else [key]
        return tuple(sorted({find_task(self.tasks, one).id for one in keys}))

    def _find_source(self, key: Any) -> int:
        """Return the number of the source of the tasks `key`; that of one task is its id."""
        return self._supply.find(self._find_tasks(key))

    def _switch(self, mask: Mask, source: int) -> None:
        self._supply.source[mask] = source

    def _draw_pass(self, tasks: tuple[int, ...], epoch: int) -> Presentations:
        drawn = self.mixture.draw_pass(
            self._seed, self._indices, tasks, epoch, len(self._alterations)
        )
        if self._labels.ndim == 1:
            drawn[LABEL] = self._label(drawn)
        return drawn

    def _begin(self, mask: Mask, seeded: bool) -> None:
        if (seeded and mask.all()) or self._supply.empty:
            self._seed = int(self.np_random.integers(2**62))
            self._supply.restart()
            mask = np.ones_like(mask)
            if self._prefetch is not None:
                self._prefetch.clear()
        self._supply.begin(mask)
        self.task = self._supply.task()

    def _advance(self, actions: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], dict[str, Any]]:
        scored = self._supply.pending
        label = scored[LABEL] if self._labels.ndim == 1 else self._label(scored)
        guess = np.asarray(actions)
        if guess.shape != label.shape:
            raise ValueError(
                f"actions have shape {guess.shape}; they must have shape {label.shape}"
            )
        info = {
            "label": label,
            "index": scored[INDEX],
            "epoch": scored[EPOCH],
            "origin": scored[ORIGIN],
            "leaked": self._supply.is_leaked(),
            "ood": scored[OOD] > 0,
        }
        correct = guess == label
        reward = correct.astype(np.float32) if label.ndim == 1 else _share(correct, label >= 0)
        self._supply.advance()
        if self._supply.mixes:
            self.task = self._supply.task()
        return reward, info

    def _observe(self) -> Observation:
        pending, single = self._supply.pending, self._supply.single
        if self._prefetch is not None and single is not None:
            inputs = self._prefetch.inputs(*single, pending)
        else:
            inputs = self._show(pending)
        return self._observation(inputs, pending)

    def _observation(self, inputs: npt.NDArray[Any], presentations: Presentations) -> Observation:
        """Return the modalities of examples with these inputs (n, ...)."""
        observation: Observation = {self.modality: inputs}
        if self.task_cue:
            observation[CUE] = np.eye(len(self.tasks), dtype=np.float32)[presentations[ORIGIN]]
        return observation

    def _show(self, presentations: Presentations) -> npt.NDArray[Any]:
        """Return the inputs (n, ...) as their tasks show them, altered if out of distribution."""
        inputs: npt.NDArray[Any] = self._inputs[presentations[INDEX]]
        if self._view is not None:
            for task in np.unique(presentations[ORIGIN]):
                of_task = presentations[ORIGIN] == task
                inputs[of_task] = self._view(inputs[of_task], int(task))
        if self.mixture.ood_ratio:
            for i in np.flatnonzero(presentations[OOD]):
                alter = self._alterations[presentations[OOD, i] - 1]
                inputs[i] = alter(inputs[i], np.random.default_rng(presentations[KEY, i]))
        return inputs

    def reference(self, task: int | str) -> tuple[float, float]:
        """Return the expected returns of uniform guesses and of always being right.

        They are (episode_length / number of actions, episode_length), and nan if there is only
        one action.

        Raises:
            ValueError: If there is no such task.
        """
        find_task(self.tasks, task)
        if self._actions == 1:
            return float("nan"), float("nan")
        return self.horizon / self._actions, float(self.horizon)

    def metric(self, task: int | str) -> Metric:
        """Return the accuracy.

        Raises:
            ValueError: If there is no such task.
        """
        find_task(self.tasks, task)
        return replace(ACCURACY, new_classes=self._new_classes)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: If it has another number of copies or tasks.
        """
        tasks = sum(len(ids) == 1 for ids in state["own"]["sources"])
        if tasks != len(self.tasks):
            raise ValueError(f"the state has {tasks} tasks; this world has {len(self.tasks)}")
        super().load_state_dict(state)

    def _world_state(self) -> dict[str, Any]:
        return {"seed": self._seed, **self._supply.state_dict()}

    def _load_world_state(self, own: Mapping[str, Any]) -> None:
        self._seed = own["seed"]
        self._supply.load_state_dict(own)
        if self._prefetch is not None:
            self._prefetch.clear()

    def close_extras(self, **kwargs: Any) -> None:
        """End the workers."""
        if self._prefetch is not None:
            self._prefetch.close()


class StreamEnv(OneCopyEnv):
    """One copy of the stream `stream`, with its parameters except `num_envs`."""

    stream: ClassVar[type[StreamVectorEnv]]
    world: StreamVectorEnv

    def __init__(self, **parameters: Any) -> None:
        super().__init__(self.stream(1, autoreset_mode=AutoresetMode.DISABLED, **parameters))


def _share(correct: Mask, counts: Mask) -> npt.NDArray[np.float32]:
    """Return the share of correct tokens among those that count, (n,); 1 where none counts."""
    total = counts.sum(1)
    share = np.where(total > 0, (correct & counts).sum(1) / np.maximum(total, 1), 1.0)
    return share.astype(np.float32)
