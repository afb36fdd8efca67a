"""A labelled text data set as episodic tasks: a step shows a text's tokens, the action is its class, or each token's tag."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces

from everloop.envs.corruptions import TEXT_ALTERATIONS
from everloop.envs.data import Examples
from everloop.envs.stream import StreamEnv, StreamVectorEnv


class TextStreamVectorEnv(StreamVectorEnv):
    """`everloop/TextStream-v0`: token ids in the modality "tokens", int32 (L,), 0 where a text is over.

    data: (train, test) `Examples`; or a Hub id or a local folder, as `load_text` takes them. All else as
    `StreamVectorEnv`. With tags (labels (N, L)) the action is a tag for every token.
    """

    modality = "tokens"
    alterations: ClassVar = TEXT_ALTERATIONS

    @staticmethod
    def _load(data: Any) -> tuple[Examples, Examples]:
        from everloop.envs.data import load_text

        if data is None:
            raise ValueError("data is None, allowed: (train, test) examples, a Hub id or a local folder")
        pair: tuple[Examples, Examples] = load_text(data) if isinstance(data, str | Path) else data
        for name, part in zip(("train", "test"), pair, strict=True):
            if part.inputs.dtype != np.int32 or part.inputs.ndim != 2:
                raise ValueError(f"{name} texts are {part.inputs.dtype} of shape {part.inputs.shape}, allowed: int32 token ids (N, L)")
        return pair

    @staticmethod
    def _input_space(data: Examples) -> spaces.Box:
        return spaces.Box(0, data.levels - 1, data.inputs.shape[1:], np.int32)


class TextStreamEnv(StreamEnv):
    """`everloop/TextStream-v0`, one copy; parameters as `TextStreamVectorEnv`."""

    stream = TextStreamVectorEnv
