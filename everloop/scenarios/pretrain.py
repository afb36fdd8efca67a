"""Convolutions trained beforehand on another data set, then kept as they are."""

from __future__ import annotations

import hashlib
from contextlib import closing
from typing import Any

import numpy as np
import torch
from torch import Tensor

from everloop.agents import Classifier, ConvNet5
from everloop.envs import Examples, SplitClasses, make_vec
from everloop.envs.data import cached, fingerprint
from everloop.loop import SupervisedLearner, Training

BATCH, RECIPE = 128, "convnet5 adam cosine crop flip 2"
"""Examples a step; what the cache knows the result by, to be changed with what is done here."""


def pretrained_convolutions(
    data: tuple[Examples, Examples], epochs: int, seed: int = 0
) -> dict[str, Tensor]:
    """State of `ConvNet5.convolutions` after `epochs` passes over all classes of `data` at once, by
    Adam at 1e-3, falling by a cosine.

    Every image is flipped and cropped at random. As van de Ven et al. 2022 pre-train theirs on
    CIFAR-10 ("Methods"), but for fewer epochs, with a smaller batch and at a higher rate. Kept in
    the cache, keyed by the images. Raises ValueError for less than 1 epoch.
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
            made: Any = make_vec(
                "everloop/ImageStream-v0", BATCH, data=data, task_split=SplitClasses(classes)
            )
            with closing(made) as world:
                world.reset(seed=seed)
                learner = SupervisedLearner(
                    Classifier(net, classes),
                    world,
                    Training(1e-3, rate="cosine", augment="crop_flip"),
                )
                learner.learn([0], epochs * len(data[0]))
        return {name: value.cpu().numpy() for name, value in net.convolutions.state_dict().items()}

    return {name: torch.from_numpy(value.copy()) for name, value in cached(key, build).items()}
