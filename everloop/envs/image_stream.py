"""An image-classification data set as episodic tasks: a step shows an image, the action is the guess."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from everloop.envs.task import Mask, Observation, OneCopyEnv, Task, TaskVectorEnv, find_task

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


@lru_cache(maxsize=1)
def digits() -> tuple[Images, Labels, Images, Labels]:
    """scikit-learn's digits: train images (1442, 8, 8, 1) and labels, test images (355, 8, 8, 1) and labels.

    Every fifth example of each class is a test example. Grey levels 0..16 become 0..240.
    Source: UCI ML hand-written digits (Alpaydin & Kaynak, 1998), as shipped with scikit-learn.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = (bunch.images[..., None] * 15).astype(np.uint8)
    labels = bunch.target.astype(np.int64)
    rank = np.empty_like(labels)
    for c in np.unique(labels):
        rank[labels == c] = np.arange(int((labels == c).sum()))
    test = rank % 5 == 4
    return images[~test], labels[~test], images[test], labels[test]


class ImageStreamVectorEnv(TaskVectorEnv):
    """`everloop/ImageStream-v0`: the batch is the vector, one indexed read serves `num_envs` examples a step.

    Task k holds the classes k * classes_per_task ... (k + 1) * classes_per_task - 1 in the order of their
    labels. The world serves each task's examples as an endless chain of passes; over one pass every example
    is judged exactly once, whatever the episodes' length. Passes are shuffled in the train split, in the
    given order in the test split. An image is pending until a guess has judged it: a reset does not skip it,
    a switch to another task gives it back to be shown first when its task returns. A seeded reset of all copies starts
    all passes anew.

    Observation (Dict): image, uint8 Box (height, width, channels); cue (if task_cue), one-hot (num_tasks,).
    Action: Discrete, the guessed label. `label_space="global"`: the data set's classes, so that the agent
    must tell all classes apart (class-incremental). `"within_task"`: the position within the task's group
    (domain-incremental, and task-incremental where the cue tells the task).
    Reward: 1 for a right guess, else 0. info["label"]: the truth of the image just judged (in the label
    space); info["index"]: its row in the split; info["epoch"]: the pass in which it was served, from 0.
    Episode: `episode_length` images, then truncated; `final_obs` already shows the image that comes next.
    `reference`: guessing uniformly, and always right.

    Source: `images` (N, H, W), (N, H, W, C) uint8 and `labels` (N,) with `test_images`, `test_labels`;
    without them scikit-learn's digits. Raises ValueError, in one line that names the value, for arrays that do
    not fit together, classes that do not divide into tasks, and tasks without examples in the split.
    """

    def __init__(
        self,
        num_envs: int = 1,
        images: npt.ArrayLike | None = None,
        labels: npt.ArrayLike | None = None,
        test_images: npt.ArrayLike | None = None,
        test_labels: npt.ArrayLike | None = None,
        split: Literal["train", "test"] = "train",
        classes_per_task: int = 2,
        label_space: Literal["global", "within_task"] = "global",
        task_cue: bool = False,
        episode_length: int = 32,
        autoreset_mode: AutoresetMode = AutoresetMode.SAME_STEP,
    ) -> None:
        if split not in ("train", "test"):
            raise ValueError(f"split is {split!r}, allowed: train, test")
        if label_space not in ("global", "within_task"):
            raise ValueError(f"label_space is {label_space!r}, allowed: global, within_task")
        if episode_length < 1:
            raise ValueError(f"episode_length is {episode_length}, allowed: 1 or more")
        train, test = self._source(images, labels, test_images, test_labels)
        self.horizon, self.task_cue, self.shuffle = episode_length, task_cue, split == "train"
        self._images, self._labels = train if split == "train" else test
        self._group_classes(np.unique(train[1]), classes_per_task, split)
        targets = self._within if label_space == "within_task" else self._class
        self._targets = targets[self._labels]
        num_actions = classes_per_task if label_space == "within_task" else len(self._class_names)
        image = spaces.Box(0, 255, self._images.shape[1:], np.uint8)
        modalities: dict[str, spaces.Space[Any]] = {"image": image}
        if task_cue:
            modalities["cue"] = spaces.Box(0.0, 1.0, (len(self.tasks),), np.float32)
        self.single_observation_space = spaces.Dict(modalities)
        self.single_action_space = spaces.Discrete(num_actions)
        super().__init__(num_envs, autoreset_mode)
        self.reward_range = (0.0, 1.0)
        self._pending = np.zeros(num_envs, dtype=np.int64)  # row shown to each copy
        self._pending_task = np.full(num_envs, -1, dtype=np.int64)  # whose image that is; -1: none
        self._epoch = np.zeros(num_envs, dtype=np.int64)

    @staticmethod
    def _source(images: Any, labels: Any, test_images: Any, test_labels: Any) -> tuple[tuple[Images, Labels], tuple[Images, Labels]]:
        given = [images is not None, labels is not None, test_images is not None, test_labels is not None]
        if not any(given):
            train_x, train_y, test_x, test_y = digits()
            return (train_x, train_y), (test_x, test_y)
        if not all(given):
            raise ValueError("images, labels, test_images and test_labels go together: give all four or none")
        train, test = _checked(images, labels, "images", "labels"), _checked(test_images, test_labels, "test_images", "test_labels")
        if train[0].shape[1:] != test[0].shape[1:]:
            raise ValueError(f"test_images are {test[0].shape[1:]} each, allowed: {train[0].shape[1:]} as images")
        return train, test

    def _group_classes(self, classes: Labels, size: int, split: str) -> None:
        if size < 1 or len(classes) % size:
            raise ValueError(f"classes_per_task is {size}, allowed: a divisor of the {len(classes)} classes")
        stray = np.setdiff1d(self._labels, classes)
        if stray.size:
            raise ValueError(f"label {stray[0]} is in the {split} labels only, allowed: the classes of the train labels")
        lookup = np.zeros(int(classes.max()) + 1, dtype=np.int64)
        lookup[classes] = np.arange(len(classes))
        self._class, self._within = lookup, lookup % size
        self._class_names = [str(c) for c in classes]
        group = lookup[self._labels] // size
        tasks, self._rows = [], []
        for k in range(len(classes) // size):
            names = self._class_names[k * size : (k + 1) * size]
            rows = np.flatnonzero(group == k)
            if not rows.size:
                raise ValueError(f"task {k} (classes {', '.join(names)}) has no example in the {split} split")
            tasks.append(Task(k, "-".join(names) if size <= 4 else f"{names[0]}-to-{names[-1]}", {"classes": names}))
            self._rows.append(rows)
        self.tasks = tuple(tasks)
        self._restart()

    def _restart(self) -> None:
        """Forget all passes: the next serve begins each task's first pass."""
        self._order = [rows[:0] for rows in self._rows]
        self._cursor = [0] * len(self._rows)
        self._passes = [-1] * len(self._rows)
        self._returned: list[list[tuple[int, int]]] = [[] for _ in self._rows]  # (row, pass) shown but never judged

    def examples(self, task: int | str) -> int:
        """How many examples one pass over `task` holds in this split."""
        return len(self._rows[find_task(self.tasks, task).id])

    def _serve(self, copies: npt.NDArray[np.int64], task: int) -> None:
        """Show the task's next examples, in order, to `copies`."""
        served = min(len(copies), len(self._returned[task]))
        for copy in copies[:served]:
            self._pending[copy], self._epoch[copy] = self._returned[task].pop(0)
        while served < len(copies):
            if self._cursor[task] == len(self._order[task]):
                rows = self._rows[task]
                self._order[task] = self.np_random.permutation(rows) if self.shuffle else rows
                self._cursor[task] = 0
                self._passes[task] += 1
            start = self._cursor[task]
            chunk = self._order[task][start : start + len(copies) - served]
            into = copies[served : served + len(chunk)]
            self._pending[into], self._epoch[into] = chunk, self._passes[task]
            self._cursor[task] += len(chunk)
            served += len(chunk)
        self._pending_task[copies] = task

    def _serve_by_task(self, mask: Mask) -> None:
        for task in np.unique(self.task[mask]):
            self._serve(np.flatnonzero(mask & (self.task == task)), int(task))

    def _begin(self, mask: Mask, seeded: bool) -> None:
        if seeded and mask.all():
            self._restart()
            self._pending_task[:] = -1
            self._serve_by_task(np.ones_like(mask))
        elif (stale := mask & (self._pending_task != self.task)).any():
            for copy in np.flatnonzero(stale & (self._pending_task >= 0)):
                self._returned[self._pending_task[copy]].append((int(self._pending[copy]), int(self._epoch[copy])))
            self._serve_by_task(stale)

    def _advance(self, actions: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], dict[str, Any]]:
        label = self._targets[self._pending]
        info = {"label": label, "index": self._pending.copy(), "epoch": self._epoch.copy()}
        guess = np.asarray(actions).reshape(-1)
        if guess.shape != label.shape:
            raise ValueError(f"actions have shape {guess.shape}, allowed: {label.shape}")
        reward = (guess == label).astype(np.float32)
        self._serve_by_task(np.ones(self.num_envs, dtype=np.bool_))
        return reward, info

    def _observe(self) -> Observation:
        observation: Observation = {"image": self._images[self._pending]}
        if self.task_cue:
            observation["cue"] = np.eye(len(self.tasks), dtype=np.float32)[self.task]
        return observation

    def reference(self, task: int | str) -> tuple[float, float]:
        """(episode_length / number of actions, episode_length); nan where there is but one action."""
        find_task(self.tasks, task)
        actions = self.single_action_space
        assert isinstance(actions, spaces.Discrete)
        if actions.n == 1:
            return float("nan"), float("nan")
        return self.horizon / float(actions.n), float(self.horizon)


class ImageStreamEnv(OneCopyEnv):
    """`everloop/ImageStream-v0`, one copy; parameters as `ImageStreamVectorEnv`."""

    def __init__(self, **parameters: Any) -> None:
        super().__init__(ImageStreamVectorEnv(1, autoreset_mode=AutoresetMode.DISABLED, **parameters))


def _checked(images: Any, labels: Any, images_name: str, labels_name: str) -> tuple[Images, Labels]:
    images, labels = np.asarray(images), np.asarray(labels)
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise ValueError(f"{images_name} have dtype {images.dtype} and shape {images.shape}, allowed: uint8, (N, H, W) or (N, H, W, C)")
    if labels.shape != images.shape[:1]:
        raise ValueError(
            f"{images_name} hold {len(images)} examples and {labels_name} have shape {labels.shape}, allowed: ({len(images)},)"
        )
    if not len(images):
        raise ValueError(f"{images_name} hold 0 examples, allowed: 1 or more")
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{labels_name} have dtype {labels.dtype}, allowed: integers from 0")
    if labels.min() < 0:
        raise ValueError(f"{labels_name} hold {labels.min()}, allowed: integers from 0")
    images = images[..., None] if images.ndim == 3 else images
    return np.ascontiguousarray(images), labels.astype(np.int64)
