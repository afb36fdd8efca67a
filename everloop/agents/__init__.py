"""Networks: torch and einops, never an environment."""

from everloop.agents.agent import Agent, Output
from everloop.agents.attention import CrossAttention
from everloop.agents.classifier import Classifier
from everloop.agents.encoders import BackboneEncoder, ImageEncoder, VectorEncoder
from everloop.agents.heads import Heads
from everloop.agents.memory import ResettableGRU
from everloop.agents.networks import MLP, ConvNet5, ResNet18

__all__ = [
    "MLP",
    "Agent",
    "BackboneEncoder",
    "Classifier",
    "ConvNet5",
    "CrossAttention",
    "Heads",
    "ImageEncoder",
    "Output",
    "ResNet18",
    "ResettableGRU",
    "VectorEncoder",
]
