"""A labelled text data set as episodic tasks: a guess is a text's class or each token's tag."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from everloop.contract import Metric
from everloop.envs.corruptions import TEXT_ALTERATIONS, Alteration
from everloop.envs.data import Examples, entity_f1, load_text, sentences
from everloop.envs.data.examples import check_kind
from everloop.envs.splits import TaskSplit
from everloop.envs.stream import Ints, StreamEnv, StreamVectorEnv
from everloop.envs.tokens import Tokens


class TextStreamVectorEnv(StreamVectorEnv):
    """`everloop/TextStream-v0`: token ids in the modality "tokens", int32 (L,), padded with 0.

    `data` is (train, test) `Examples`; or a Hub id or a local folder, which `load_text` reads; or
    None for the built-in `sentences`. For everything else see `StreamVectorEnv`.

    If the labels are tags (N, L), the action is a tag for every token and the reward is the share
    of correct tags. A pass over the test split is scored by the F1 of whole entities (`metric`).
    """

    modality = "tokens"

    def _assign(
        self, task_split: TaskSplit, train: Examples, test: Examples, split: str, label_space: str
    ) -> None:
        super()._assign(task_split, train, test, split, label_space)
        self._tags: list[str] = []
        if train.labels.ndim == 2:
            self._tags = self._tag_names(train.classes)

    def _tag_names(self, classes: Sequence[str]) -> list[str]:
        """Return each action's tag."""
        names = [""] * self._actions
        for task in self.tasks:
            for tag, number in zip(classes, self._table[task.id], strict=False):
                if number >= 0:
                    names[number] = tag
        return names

    def metric(self, task: int | str) -> Metric:
        """Return the accuracy; for tags the F1 of whole entities."""
        metric = super().metric(task)
        if not self._tags:
            return metric
        return replace(metric, name="entity F1", evaluate=self._entity_f1)

    def _entity_f1(self, labels: Ints, guesses: Ints) -> float:
        """Return the entity-level F1 of a pass; labels and guesses (N, L)."""
        return entity_f1(labels, guesses, self._tags)

    @staticmethod
    def _load(data: Any) -> tuple[Examples, Examples]:
        if data is None:
            return sentences()
        pair = load_text(data) if isinstance(data, str | Path) else data
        return check_kind(pair, "texts", np.int32, 2, "int32 token ids (N, L)")

    @staticmethod
    def _input_space(data: Examples) -> spaces.Box:
        return Tokens(data.vocabulary_size, data.inputs.shape[1])

    def _known_alterations(self) -> Mapping[str, Alteration]:
        return TEXT_ALTERATIONS


class TextStreamEnv(StreamEnv):
    """`everloop/TextStream-v0`, one copy; parameters as for `TextStreamVectorEnv`."""

    stream = TextStreamVectorEnv
