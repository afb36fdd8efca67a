"""Convolutions trained beforehand on another data set, then kept as they are."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from everloop.agents import Classifier, ConvNet5
from everloop.envs import Assignment, Examples, SplitClasses, make_vec
from everloop.envs.data import cached, fingerprint
from everloop.loop import SupervisedLearner, Training

BATCH, PADDING, RECIPE = 128, 4, "convnet5 adam cosine crop flip 1"
"""Examples a step; pixels by which a crop may be off; what the cache knows the result by, to be changed with what is done here."""


def pretrained_convolutions(data: tuple[Examples, Examples], epochs: int, seed: int = 0) -> dict[str, Tensor]:
    """State of `ConvNet5.convolutions` after `epochs` passes over all classes of `data` at once, by Adam at 1e-3, falling by a cosine.

    Every image is flipped and cropped at random. As van de Ven et al. 2022 pre-train theirs on CIFAR-10 ("Methods"), but
    for fewer epochs, with a smaller batch and at a higher rate. Kept in the cache, keyed by the images.
    Raises ValueError for less than 1 epoch.
    """
    if epochs < 1:
        raise ValueError(f"pretrain_epochs is {epochs}, allowed: 1 or more")
    shape, classes = data[0].inputs.shape[1:], len(data[0].classes)
    contents = hashlib.blake2b(np.ascontiguousarray(data[0].inputs).data).hexdigest()
    key = f"pretrained-{fingerprint(RECIPE, contents, str((epochs, seed, shape)))}"

    def build() -> dict[str, Any]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = ConvNet5(shape)
            world: Any = make_vec("everloop/ImageStream-v0", BATCH, data=data, protocol=_Augmented(classes, seed))
            world.reset(seed=seed)
            learner = SupervisedLearner(Classifier(net, classes), world, Training(1e-3, rate="cosine"))
            learner.learn([0], epochs * len(data[0]), lambda steps: None)
        return {name: value.cpu().numpy() for name, value in net.convolutions.state_dict().items()}

    return {name: torch.from_numpy(value.copy()) for name, value in cached(key, build).items()}


@dataclass(frozen=True)
class _Augmented(SplitClasses):
    """All classes in one task, its images flipped left to right and moved by up to `PADDING` pixels, at random."""

    def assign(self, train: Examples, test: Examples) -> Assignment:
        plain, rng = SplitClasses(self.classes_per_task).assign(train, test), np.random.default_rng(self.seed)

        def view(images: npt.NDArray[Any], task: int) -> npt.NDArray[Any]:
            height, width = images.shape[1:3]
            padded = np.pad(images, ((0, 0), (PADDING, PADDING), (PADDING, PADDING), (0, 0)))
            top, left = rng.integers(0, 2 * PADDING + 1, (2, len(images), 1))
            columns = np.where(rng.random((len(images), 1)) < 0.5, np.arange(width), np.arange(width)[::-1])
            rows = top + np.arange(height)
            moved: npt.NDArray[Any] = padded[np.arange(len(images))[:, None, None], rows[:, :, None], (left + columns)[:, None]]
            return moved

        return replace(plain, view=view)
