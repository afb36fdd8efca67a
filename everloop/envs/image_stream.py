"""An image-classification data set as episodic tasks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from everloop.envs.corruptions import IMAGE_ALTERATIONS, Alteration
from everloop.envs.data import Examples, digits, load_images
from everloop.envs.data.examples import check_kind
from everloop.envs.stream import StreamEnv, StreamVectorEnv


class ImageStreamVectorEnv(StreamVectorEnv):
    """`everloop/ImageStream-v0`: images in the modality "image", uint8 (height, width, channels).

    `data` is (train, test) `Examples`; or a Hub id or a local folder, which `load_images` reads;
    or None for scikit-learn's digits. For everything else see `StreamVectorEnv`.
    """

    modality = "image"

    @staticmethod
    def _load(data: Any) -> tuple[Examples, Examples]:
        if data is None:
            return digits()
        pair = load_images(data) if isinstance(data, str | Path) else data
        return check_kind(pair, "images", np.uint8, 4, "uint8 (N, H, W, C)")

    @staticmethod
    def _input_space(data: Examples) -> spaces.Box:
        return spaces.Box(0, 255, data.inputs.shape[1:], np.uint8)

    def _known_alterations(self) -> Mapping[str, Alteration]:
        return IMAGE_ALTERATIONS


class ImageStreamEnv(StreamEnv):
    """`everloop/ImageStream-v0`, one copy; parameters as for `ImageStreamVectorEnv`."""

    stream = ImageStreamVectorEnv
