"""A data set of vectors as episodic tasks: tables, sensors, embeddings computed beforehand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from everloop.envs.corruptions import Alteration, feature_alterations
from everloop.envs.data import Examples, digits, from_features, load_features
from everloop.envs.data.examples import check_kind
from everloop.envs.stream import StreamEnv, StreamVectorEnv


class FeatureStreamVectorEnv(StreamVectorEnv):
    """`everloop/FeatureStream-v0`: vectors in the modality "features", float32 (D,).

    `data` is (train, test) `Examples`; or a .csv or .npz file, which `load_features` reads; or None
    for scikit-learn's digits as 64 grey levels from 0 to 240. For everything else see
    `StreamVectorEnv`.
    """

    modality = "features"

    @staticmethod
    def _load(data: Any) -> tuple[Examples, Examples]:
        if data is None:
            train, test = digits()
            flat = [part.inputs.reshape(len(part), -1) for part in (train, test)]
            return from_features(flat[0], train.labels, flat[1], test.labels)
        pair = load_features(data) if isinstance(data, str | Path) else data
        return check_kind(pair, "features", np.float32, 2, "float32 (N, D)")

    @staticmethod
    def _input_space(data: Examples) -> spaces.Box:
        return spaces.Box(-np.inf, np.inf, data.inputs.shape[1:], np.float32)

    def _known_alterations(self) -> Mapping[str, Alteration]:
        return feature_alterations(self._inputs.mean(0), self._inputs.std(0))


class FeatureStreamEnv(StreamEnv):
    """`everloop/FeatureStream-v0`, one copy; parameters as for `FeatureStreamVectorEnv`."""

    stream = FeatureStreamVectorEnv
