"""Labelled data sets of images and texts, as arrays."""

from everloop.envs.data.examples import NO_LABEL, Examples

__all__ = ["NO_LABEL", "Examples"]
