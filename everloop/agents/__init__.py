"""Networks. They need torch and einops, and know no environment."""

from everloop.agents.agent import Agent
from everloop.agents.attention import CrossAttention
from everloop.agents.classifier import Classifier
from everloop.agents.encoders import BackboneEncoder, ImageEncoder, VectorEncoder
from everloop.agents.features import FeatureMLP
from everloop.agents.heads import Heads
from everloop.agents.memory import ResettableGRU
from everloop.agents.nested import ContinuumMemory, NestedConvNet, levels_of
from everloop.agents.networks import MLP, ConvNet5, ResNet18
from everloop.agents.normalise import RunningNorm
from everloop.agents.own import OwnBackbone
from everloop.agents.progressive import GrowingMLP, ProgressiveMLP
from everloop.agents.text import EmbeddingEncoder, TransformerEncoder
from everloop.contract import Output

__all__ = [
    "MLP",
    "Agent",
    "BackboneEncoder",
    "Classifier",
    "ContinuumMemory",
    "ConvNet5",
    "CrossAttention",
    "EmbeddingEncoder",
    "FeatureMLP",
    "GrowingMLP",
    "Heads",
    "ImageEncoder",
    "NestedConvNet",
    "Output",
    "OwnBackbone",
    "ProgressiveMLP",
    "ResNet18",
    "ResettableGRU",
    "RunningNorm",
    "TransformerEncoder",
    "VectorEncoder",
    "levels_of",
]
