"""Networks: torch and einops, never an environment."""

from everloop.agents.agent import Agent, Output
from everloop.agents.attention import CrossAttention
from everloop.agents.encoders import ImageEncoder, VectorEncoder
from everloop.agents.memory import ResettableGRU

__all__ = ["Agent", "CrossAttention", "ImageEncoder", "Output", "ResettableGRU", "VectorEncoder"]
