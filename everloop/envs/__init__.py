"""Worlds with tasks. numpy and gymnasium only; importing this registers them with Gymnasium."""

from gymnasium.envs.registration import register, registry

from everloop.envs.check import check_task_env
from everloop.envs.feedback import Feedback, VectorFeedback
from everloop.envs.image_stream import ImageStreamEnv, ImageStreamVectorEnv, digits
from everloop.envs.plant import PlantEnv, PlantVectorEnv
from everloop.envs.riccati import LinearQuadratic
from everloop.envs.task import Task, TaskEnv, TaskVectorEnv, find_task
from everloop.envs.vector import SyncTaskVectorEnv, make_vec

for _id, _module, _name in (("Plant", "plant", "Plant"), ("ImageStream", "image_stream", "ImageStream")):
    if f"everloop/{_id}-v0" not in registry:
        register(
            id=f"everloop/{_id}-v0",
            entry_point=f"everloop.envs.{_module}:{_name}Env",
            vector_entry_point=f"everloop.envs.{_module}:{_name}VectorEnv",
        )

__all__ = [
    "Feedback",
    "ImageStreamEnv",
    "ImageStreamVectorEnv",
    "LinearQuadratic",
    "PlantEnv",
    "PlantVectorEnv",
    "SyncTaskVectorEnv",
    "Task",
    "TaskEnv",
    "TaskVectorEnv",
    "VectorFeedback",
    "check_task_env",
    "digits",
    "find_task",
    "make_vec",
]
