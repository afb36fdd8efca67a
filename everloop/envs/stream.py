"""A labelled data set as episodic tasks: a step shows an example, the action is the guess."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from everloop.contract import ACCURACY, CUE, Metric, Observation
from everloop.envs.corruptions import Alteration, find_alterations, other_data
from everloop.envs.data import Examples
from everloop.envs.protocols import Protocol, SplitClasses, find_protocol
from everloop.envs.schedule import (
    EPOCH,
    KEY,
    LABEL,
    OOD,
    ORIGIN,
    ROW,
    Plan,
    Schedule,
    find_schedule,
)
from everloop.envs.task import Mask, OneCopyEnv, TaskVectorEnv, find_task

Ints = npt.NDArray[np.int64]


class StreamVectorEnv(TaskVectorEnv):
    """The batch is the vector: one indexed read serves `num_envs` examples a step. Abstract; see
    its subclasses.

    The world serves each task's examples as an endless chain of shuffled passes; over one pass
    every example is judged exactly once, whatever the episodes' length. An example is pending until
    a guess has judged it: a reset does not skip it, a switch to another task gives it back to be
    shown first when its task returns. A seeded reset of all copies starts all passes anew. The
    chain is a function of the seed and the task, whatever the number of copies and workers.

    Observation (Dict): the example, in the modality of the subclass; cue (if task_cue), one-hot
        (num_tasks,): the task that the example belongs to.
    Action: the guess, Discrete; of tags MultiDiscrete, one a token. `label_space="global"`: among
        the classes of all tasks, told apart (class-incremental). `"within_task"`: among those of
        one task (domain-incremental, and task-incremental where the cue tells the task).
    Reward: 1 for a right guess, else 0; of tags the share that is right.
    info, of the example just judged: "label", the truth (in the label space; -1 for a token without
        a tag); "index", its row in the split; "epoch", the pass in which it was served, from 0;
        "origin", the task that it belongs to; "leaked", whether that is another than the one at
        hand; "ood", whether it was altered.
    Episode: `episode_length` examples, then truncated; `final_obs` already shows the example that
        comes next.
    `reference`: guessing uniformly, and always right.

    data: (train, test), or what the subclass can load.
    protocol: how the data becomes tasks, a `Protocol` or plain data such as {"kind": "classes",
        "classes_per_task": 2}.
    schedule: what gets among a task's examples in the train split, a `Schedule` or plain data such
        as {"blur_ratio": 0.1}. The test split is always clean.
    ood_data: inputs (N, ...) of another data set, in the same shape: one more way to be out of
        distribution, "other".
    workers: threads that prepare the next observations while the learner learns from the last; 0
    for none. Raises ValueError, in one line that names the value, for what does not fit the data,
    and for tasks without examples.
    """

    modality: ClassVar[str]
    alterations: ClassVar[Mapping[str, Alteration]]

    def __init__(
        self,
        num_envs: int = 1,
        data: Any = None,
        protocol: Protocol | Mapping[str, Any] = SplitClasses(2),  # noqa: B008
        split: Literal["train", "test"] = "train",
        label_space: Literal["global", "within_task"] = "global",
        task_cue: bool = False,
        episode_length: int = 256,
        schedule: Schedule | Mapping[str, Any] = Schedule(),  # noqa: B008
        ood_data: npt.ArrayLike | None = None,
        workers: int = 0,
        autoreset_mode: AutoresetMode = AutoresetMode.SAME_STEP,
    ) -> None:
        if split not in ("train", "test"):
            raise ValueError(f"split is {split!r}, allowed: train, test")
        if label_space not in ("global", "within_task"):
            raise ValueError(f"label_space is {label_space!r}, allowed: global, within_task")
        for name, value, least in (("episode_length", episode_length, 1), ("workers", workers, 0)):
            if value < least:
                raise ValueError(f"{name} is {value}, allowed: {least} or more")
        train, test = self._load(data)
        _check_pair(train, test)
        self.horizon, self.task_cue = episode_length, task_cue
        self._inputs = np.asarray(
            (train if split == "train" else test).inputs
        )  # of a memory map: a plain view
        self._labels = np.asarray((train if split == "train" else test).labels)
        self._assign(find_protocol(protocol), train, test, split, label_space)
        self.schedule = find_schedule(schedule) if split == "train" else Schedule()
        self._check_order()
        self._alterations = self._find_alterations(ood_data)
        modalities: dict[str, spaces.Space[Any]] = {self.modality: self._input_space(train)}
        if task_cue:
            modalities[CUE] = spaces.Box(0.0, 1.0, (len(self.tasks),), np.float32)
        self.single_observation_space = spaces.Dict(modalities)
        actions = int(self._table.max()) + 1
        tags = self._labels.ndim == 2
        self.single_action_space = (
            spaces.MultiDiscrete([actions] * self._labels.shape[1])
            if tags
            else spaces.Discrete(actions)
        )
        super().__init__(num_envs, autoreset_mode)
        self.reward_range = (0.0, 1.0)
        self._all = np.arange(num_envs)
        self._workers = ThreadPoolExecutor(workers) if workers else None
        self._ahead: deque[tuple[tuple[int, int, int], Future[Any]]] = deque()
        self._depth = workers
        self._seed = 0
        self._restart()

    @staticmethod
    def _load(data: Any) -> tuple[Examples, Examples]:
        """(train, test) of whatever the user gave."""
        raise NotImplementedError

    @staticmethod
    def _input_space(data: Examples) -> spaces.Box:
        raise NotImplementedError

    def _assign(
        self, protocol: Protocol, train: Examples, test: Examples, split: str, label_space: str
    ) -> None:
        assignment = protocol.assign(train, test)
        self.tasks, self._view = assignment.tasks, assignment.view
        self._rows = assignment.train if split == "train" else assignment.test
        for task, rows in zip(self.tasks, self._rows, strict=True):
            if not len(rows):
                raise ValueError(
                    f"task {task.id} ({task.name}) has no example in the {split} split, allowed: 1 "
                    "or more"
                )
        numbers = assignment.joint if label_space == "global" else assignment.within
        self._table = np.pad(
            numbers, ((0, 0), (0, 1)), constant_values=-1
        )  # what has no label, -1, keeps none

    def _check_order(self) -> None:
        ids = [task.id for task in self.tasks]
        order = ids if self.schedule.order is None else list(self.schedule.order)
        if not set(order) <= set(ids) or len(set(order)) < len(order):
            raise ValueError(
                f"the schedule's order is {order}, allowed: ids from 0 to {len(ids) - 1}, each once"
            )

    def _find_alterations(self, ood_data: Any) -> list[Alteration]:
        known = dict(self.alterations)
        if ood_data is not None:
            other, shape = np.asarray(ood_data), self._inputs.shape[1:]
            if other.shape[1:] != shape or other.dtype != self._inputs.dtype or not len(other):
                wanted = f"{self._inputs.dtype} (N, {', '.join(map(str, shape))})"
                raise ValueError(
                    f"ood_data is {other.dtype} of shape {other.shape}, allowed: {wanted}"
                )
            known["other"] = other_data(other)
        return find_alterations(
            list(known) if self.schedule.ood is None else self.schedule.ood, known
        )

    def _restart(self) -> None:
        """Forget all passes: the next serve begins each task's first pass."""
        tasks = len(self.tasks)
        self._plan: list[Plan] = [np.zeros((6, 0), dtype=np.int64)] * tasks
        self._cursor, self._passes = [0] * tasks, [-1] * tasks
        self._returned: list[list[Ints]] = [[] for _ in self.tasks]  # shown but never judged
        self._pending = np.full((6, self.num_envs), -1, dtype=np.int64)  # what each copy is shown
        self._pending_task = np.full(
            self.num_envs, -1, dtype=np.int64
        )  # in whose chain that stands; -1: nothing yet
        self._ahead.clear()

    def examples(self, task: int | str) -> int:
        """How many examples one pass over `task` serves, with all that gets among them."""
        return len(self._make_plan(find_task(self.tasks, task).id, 0)[0])

    def _make_plan(self, task: int, epoch: int) -> Plan:
        plan = self.schedule.plan(self._seed, self._rows, task, epoch, len(self._alterations))
        if self._labels.ndim == 1:
            plan[LABEL] = self._table[plan[ORIGIN], self._labels[plan[ROW]]]
        return plan

    def _serve(self, copies: Ints, task: int) -> None:
        """Show the chain's next examples, in order, to `copies`."""
        self._pending = self._pending.copy()  # the last one has gone out in infos
        served = min(len(copies), len(self._returned[task]))
        for copy in copies[:served]:
            self._pending[:, copy] = self._returned[task].pop(0)
        while served < len(copies):
            if self._cursor[task] == self._plan[task].shape[1]:
                self._passes[task] += 1
                self._plan[task], self._cursor[task] = self._make_plan(task, self._passes[task]), 0
            start = self._cursor[task]
            chunk = self._plan[task][:, start : start + len(copies) - served]
            self._pending[:, copies[served : served + chunk.shape[1]]] = chunk
            self._cursor[task] += chunk.shape[1]
            served += chunk.shape[1]
        self._pending_task[copies] = task

    def _serve_by_task(self, mask: Mask) -> None:
        for task in np.unique(self.task[mask]):
            self._serve(np.flatnonzero(mask & (self.task == task)), int(task))

    def _serve_all(self) -> None:
        """As `_serve_by_task` for all copies; where they play one task and its pass is long enough,
        one slice.
        """
        task, n = int(self.task[0]), self.num_envs
        start = self._cursor[task]
        if not self._uniform or self._returned[task] or start + n > self._plan[task].shape[1]:
            self._serve_by_task(np.ones(n, dtype=np.bool_))
        else:
            self._pending, self._cursor[task] = (
                self._plan[task][:, start : start + n].copy(),
                start + n,
            )

    def _begin(self, mask: Mask, seeded: bool) -> None:
        if (seeded and mask.all()) or self._pending_task[0] < 0:
            self._seed = int(self.np_random.integers(2**62))
            self._restart()
            self._serve_by_task(np.ones_like(mask))
        elif (stale := mask & (self._pending_task != self.task)).any():
            for copy in np.flatnonzero(stale):
                self._returned[self._pending_task[copy]].append(self._pending[:, copy].copy())
            self._serve_by_task(stale)
        self._uniform = bool((self.task == self.task[0]).all())

    def _advance(self, actions: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], dict[str, Any]]:
        judged = self._pending
        label = (
            judged[LABEL]
            if self._labels.ndim == 1
            else self._table[judged[ORIGIN][:, None], self._labels[judged[ROW]]]
        )
        guess = np.asarray(actions)
        if guess.shape != label.shape:
            raise ValueError(f"actions have shape {guess.shape}, allowed: {label.shape}")
        info = {
            "label": label,
            "index": judged[ROW],
            "epoch": judged[EPOCH],
            "origin": judged[ORIGIN],
            "leaked": judged[ORIGIN] != self._pending_task,
            "ood": judged[OOD] > 0,
        }
        right = guess == label
        reward = right.astype(np.float32) if label.ndim == 1 else _share(right, label >= 0)
        self._serve_all()
        return reward, info

    def _observe(self) -> Observation:
        observation: Observation = {self.modality: self._prepared()}
        if self.task_cue:
            observation[CUE] = np.eye(len(self.tasks), dtype=np.float32)[self._pending[ORIGIN]]
        return observation

    def _prepared(self) -> npt.NDArray[Any]:
        """The pending inputs: from a worker if one has prepared them, else now; and workers go on
        with the next.
        """
        if self._workers is None or not self._uniform:
            return self._show(self._pending)
        task, n = int(self.task[0]), self.num_envs
        now = (task, self._passes[task], self._cursor[task] - n)
        while self._ahead and self._ahead[0][0] != now:
            self._ahead.popleft()[1].cancel()
        shown = self._ahead.popleft()[1].result() if self._ahead else self._show(self._pending)
        first = self._ahead[-1][0][2] + n if self._ahead else self._cursor[task]
        plan = self._plan[task]
        for start in range(first, plan.shape[1] - n + 1, n)[: self._depth - len(self._ahead)]:
            future = self._workers.submit(self._show, plan[:, start : start + n])
            self._ahead.append(((task, self._passes[task], start), future))
        prepared: npt.NDArray[Any] = shown
        return prepared

    def _show(self, what: Plan) -> npt.NDArray[Any]:
        """Inputs (n, ...) as their tasks show them, altered where they are out of distribution."""
        inputs: npt.NDArray[Any] = self._inputs[what[ROW]]
        if self._view is not None:
            for task in np.unique(what[ORIGIN]):
                of_task = what[ORIGIN] == task
                inputs[of_task] = self._view(inputs[of_task], int(task))
        if self.schedule.ood_ratio:
            for i in np.flatnonzero(what[OOD]):
                alter = self._alterations[what[OOD, i] - 1]
                inputs[i] = alter(inputs[i], np.random.default_rng(what[KEY, i]))
        return inputs

    def reference(self, task: int | str) -> tuple[float, float]:
        """(episode_length / number of actions, episode_length); nan where there is but one
        action.
        """
        find_task(self.tasks, task)
        actions = int(self._table.max()) + 1
        if actions == 1:
            return float("nan"), float("nan")
        return self.horizon / actions, float(self.horizon)

    def metric(self, task: int | str) -> Metric:
        """The accuracy."""
        find_task(self.tasks, task)
        return ACCURACY

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave.

        Raises ValueError if it is of another number of copies or tasks.
        """
        tasks = len(state["own"]["cursor"])
        if tasks != len(self.tasks):
            raise ValueError(f"the state is of {tasks} tasks; this world has {len(self.tasks)}")
        super().load_state_dict(state)

    def _world_state(self) -> dict[str, Any]:
        """Where every chain stands."""
        return {
            "seed": self._seed,
            "cursor": list(self._cursor),
            "passes": list(self._passes),
            "returned": [[column.copy() for column in columns] for columns in self._returned],
            "pending": self._pending.copy(),
            "pending_task": self._pending_task.copy(),
        }

    def _load_world_state(self, own: Mapping[str, Any]) -> None:
        self._restart()
        self._seed, self._cursor, self._passes = (
            own["seed"],
            list(own["cursor"]),
            list(own["passes"]),
        )
        self._plan = [
            plan if p < 0 else self._make_plan(k, p)
            for k, (plan, p) in enumerate(zip(self._plan, self._passes, strict=True))
        ]
        self._returned = [[column.copy() for column in columns] for columns in own["returned"]]
        self._pending, self._pending_task = own["pending"].copy(), own["pending_task"].copy()
        self._uniform = bool((self.task == self.task[0]).all())

    def close_extras(self, **kwargs: Any) -> None:
        """Let the workers go."""
        if self._workers is not None:
            self._workers.shutdown(cancel_futures=True)


class StreamEnv(OneCopyEnv):
    """A stream of one copy, of the class `stream`; parameters as there."""

    stream: ClassVar[type[StreamVectorEnv]]
    world: StreamVectorEnv

    def __init__(self, **parameters: Any) -> None:
        super().__init__(self.stream(1, autoreset_mode=AutoresetMode.DISABLED, **parameters))


def _share(right: Mask, counts: Mask) -> npt.NDArray[np.float32]:
    """Of each row the share of those that count; 1 where none does."""
    total = counts.sum(1)
    share: npt.NDArray[np.float32] = np.where(
        total > 0, (right & counts).sum(1) / np.maximum(total, 1), 1.0
    ).astype(np.float32)
    return share


def check_kind(
    pair: tuple[Examples, Examples], name: str, dtype: type, ndim: int, allowed: str
) -> tuple[Examples, Examples]:
    """`pair`, or ValueError unless its inputs, of which a message speaks as `name`, have this dtype
    and number of dimensions.
    """
    for split, part in zip(("train", "test"), pair, strict=True):
        if part.inputs.dtype != dtype or part.inputs.ndim != ndim:
            raise ValueError(
                f"{split} {name} are {part.inputs.dtype} of shape {part.inputs.shape}, allowed: "
                f"{allowed}"
            )
    return pair


def _check_pair(train: Examples, test: Examples) -> None:
    if train.inputs.shape[1:] != test.inputs.shape[1:]:
        raise ValueError(
            f"test examples have shape {test.inputs.shape[1:]} each, allowed: "
            f"{train.inputs.shape[1:]} as in training"
        )
    if list(train.classes) != list(test.classes):
        raise ValueError(
            f"the test classes are {list(test.classes)}, allowed: those of training, "
            f"{list(train.classes)}"
        )
