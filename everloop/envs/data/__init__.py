"""Labelled data sets of images, texts and features as arrays."""

from everloop.envs.data.arrays import digits, from_arrays
from everloop.envs.data.cache import cache_folder, cached, fingerprint
from everloop.envs.data.examples import NO_LABEL, Examples
from everloop.envs.data.features import from_features, load_features
from everloop.envs.data.images import load_images
from everloop.envs.data.kaggle import imagenet256
from everloop.envs.data.ner import entity_f1, load_ner
from everloop.envs.data.sentences import sentences
from everloop.envs.data.tasks import from_tasks
from everloop.envs.data.text import load_text, text_folders
from everloop.envs.data.tokens import HashTokenizer, PretrainedTokenizer, Tokenizer
from everloop.envs.data.torch_data import from_torch

__all__ = [
    "NO_LABEL",
    "Examples",
    "HashTokenizer",
    "PretrainedTokenizer",
    "Tokenizer",
    "cache_folder",
    "cached",
    "digits",
    "entity_f1",
    "fingerprint",
    "from_arrays",
    "from_features",
    "from_tasks",
    "from_torch",
    "imagenet256",
    "load_features",
    "load_images",
    "load_ner",
    "load_text",
    "sentences",
    "text_folders",
]
