"""Convolutions that are pre-trained on another data set and then frozen."""

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
"""Batch size, and the recipe in the cache key. Change the recipe whenever the training changes."""


def pretrained_convolutions(
    data: tuple[Examples, Examples], epochs: int, seed: int = 0
) -> dict[str, Tensor]:
    """Train `ConvNet5.convolutions` on all classes of `data` at once.

    Training uses Adam with learning rate 1e-3 and cosine decay, and flips and crops images at
    random. It follows van de Ven et al. 2022 ("Methods"), who pre-train on CIFAR-10, but with fewer
    epochs, a smaller batch and a higher learning rate. The cache stores the result by the images.

    Args:
        data: (train, test) images, (N, H, W, C). Only the training images are used.
        epochs: Passes over the training images, 1 or more.
        seed: Seed for the weights and the order of the images, 0 or more.

    Returns:
        The state dict of the convolutions.

    Raises:
        ValueError: If `epochs` is below 1.
    """
    if epochs < 1:
        raise ValueError(f"pretrain_epochs is {epochs}; it must be 1 or more")
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
