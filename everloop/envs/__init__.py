"""Worlds with tasks. numpy and gymnasium only; importing this registers them with Gymnasium."""

from gymnasium.envs.registration import register, registry

from everloop.contract import Task
from everloop.envs.check import check_task_env
from everloop.envs.data import Examples
from everloop.envs.feedback import Feedback, VectorFeedback
from everloop.envs.image_stream import ImageStreamEnv, ImageStreamVectorEnv
from everloop.envs.plant import PlantEnv, PlantVectorEnv
from everloop.envs.protocols import (
    PROTOCOLS,
    Assignment,
    ByColumn,
    IBlurry,
    Permuted,
    Protocol,
    Rotated,
    SplitClasses,
)
from everloop.envs.riccati import LinearQuadratic
from everloop.envs.schedule import PRESETS, Schedule
from everloop.envs.stream import StreamEnv, StreamVectorEnv
from everloop.envs.task import TaskEnv, TaskVectorEnv, find_task
from everloop.envs.text_stream import TextStreamEnv, TextStreamVectorEnv
from everloop.envs.vector import SyncTaskVectorEnv, make_vec
from everloop.envs.wrapper import TaskVectorWrapper

for _id, _module, _name in (
    ("Plant", "plant", "Plant"),
    ("ImageStream", "image_stream", "ImageStream"),
    ("TextStream", "text_stream", "TextStream"),
):
    if f"everloop/{_id}-v0" not in registry:
        register(
            id=f"everloop/{_id}-v0",
            entry_point=f"everloop.envs.{_module}:{_name}Env",
            vector_entry_point=f"everloop.envs.{_module}:{_name}VectorEnv",
        )

__all__ = [
    "PRESETS",
    "PROTOCOLS",
    "Assignment",
    "ByColumn",
    "Examples",
    "Feedback",
    "IBlurry",
    "ImageStreamEnv",
    "ImageStreamVectorEnv",
    "LinearQuadratic",
    "Permuted",
    "PlantEnv",
    "PlantVectorEnv",
    "Protocol",
    "Rotated",
    "Schedule",
    "SplitClasses",
    "StreamEnv",
    "StreamVectorEnv",
    "SyncTaskVectorEnv",
    "Task",
    "TaskEnv",
    "TaskVectorEnv",
    "TaskVectorWrapper",
    "TextStreamEnv",
    "TextStreamVectorEnv",
    "VectorFeedback",
    "check_task_env",
    "find_task",
    "make_vec",
]
