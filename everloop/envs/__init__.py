"""Worlds with tasks, registered with Gymnasium on import. They need numpy and gymnasium only."""

from gymnasium.envs.registration import register, registry

from everloop.contract import Task
from everloop.envs.beacons import BeaconsEnv, BeaconsVectorEnv
from everloop.envs.check import check_task_env
from everloop.envs.data import Examples
from everloop.envs.families import FAMILIES
from everloop.envs.feature_stream import FeatureStreamEnv, FeatureStreamVectorEnv
from everloop.envs.feedback import Feedback, VectorFeedback
from everloop.envs.image_stream import ImageStreamEnv, ImageStreamVectorEnv
from everloop.envs.mixture import PRESETS, Mixture
from everloop.envs.plant import PlantEnv, PlantVectorEnv
from everloop.envs.riccati import LinearQuadratic
from everloop.envs.sequence import EnvSequence
from everloop.envs.splits import (
    TASK_SPLITS,
    Assignment,
    ByColumn,
    IBlurry,
    Permuted,
    Rotated,
    SplitClasses,
    TaskSplit,
)
from everloop.envs.stream import StreamEnv, StreamVectorEnv
from everloop.envs.task import TaskEnv, TaskVectorEnv, find_task
from everloop.envs.text_stream import TextStreamEnv, TextStreamVectorEnv
from everloop.envs.tokens import Tokens
from everloop.envs.vector import AsyncTaskVectorEnv, SyncTaskVectorEnv, make_vec
from everloop.envs.wrapper import TaskVectorWrapper

for _id, _module, _name in (
    ("Beacons", "beacons", "Beacons"),
    ("Plant", "plant", "Plant"),
    ("ImageStream", "image_stream", "ImageStream"),
    ("TextStream", "text_stream", "TextStream"),
    ("FeatureStream", "feature_stream", "FeatureStream"),
):
    if f"everloop/{_id}-v0" not in registry:
        register(
            id=f"everloop/{_id}-v0",
            entry_point=f"everloop.envs.{_module}:{_name}Env",
            vector_entry_point=f"everloop.envs.{_module}:{_name}VectorEnv",
        )

for _id in ("everloop/Sequence-v0", *FAMILIES):
    if _id not in registry:
        _arguments = dict(FAMILIES[_id].arguments) if _id in FAMILIES else {}
        register(id=_id, entry_point="everloop.envs.sequence:EnvSequence", kwargs=_arguments)

__all__ = [
    "FAMILIES",
    "PRESETS",
    "TASK_SPLITS",
    "Assignment",
    "AsyncTaskVectorEnv",
    "BeaconsEnv",
    "BeaconsVectorEnv",
    "ByColumn",
    "EnvSequence",
    "Examples",
    "FeatureStreamEnv",
    "FeatureStreamVectorEnv",
    "Feedback",
    "IBlurry",
    "ImageStreamEnv",
    "ImageStreamVectorEnv",
    "LinearQuadratic",
    "Mixture",
    "Permuted",
    "PlantEnv",
    "PlantVectorEnv",
    "Rotated",
    "SplitClasses",
    "StreamEnv",
    "StreamVectorEnv",
    "SyncTaskVectorEnv",
    "Task",
    "TaskEnv",
    "TaskSplit",
    "TaskVectorEnv",
    "TaskVectorWrapper",
    "TextStreamEnv",
    "TextStreamVectorEnv",
    "Tokens",
    "VectorFeedback",
    "check_task_env",
    "find_task",
    "make_vec",
]
