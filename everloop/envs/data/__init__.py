"""Labelled data sets of images and texts, as arrays."""

from everloop.envs.data.arrays import digits, from_arrays
from everloop.envs.data.cache import cache_folder, cached, fingerprint
from everloop.envs.data.examples import NO_LABEL, Examples
from everloop.envs.data.images import load_images
from everloop.envs.data.kaggle import imagenet256
from everloop.envs.data.torch_data import from_torch

__all__ = [
    "NO_LABEL",
    "Examples",
    "cache_folder",
    "cached",
    "digits",
    "fingerprint",
    "from_arrays",
    "from_torch",
    "imagenet256",
    "load_images",
]
