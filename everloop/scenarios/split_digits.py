"""Handwritten digits, two classes at a time: an image-classification stream with revealed labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from everloop.agents import Agent
from everloop.envs import make_vec
from everloop.loop import Learner, SupervisedLearner, Training, World, likelihood_for
from everloop.scenarios.scenario import Scenario, Split


@dataclass
class SplitDigits(Scenario):
    """scikit-learn's digits in 5 tasks of 2 classes (van de Ven, Tuytelaars & Tolias 2022 name the three types).

    scenario_type: "class" tells all 10 digits apart without being told the task; "domain" says which of the
        task's two, without being told the task; "task" is told it, and has a head for each.
    epochs: passes over each task's examples; 1 is single-pass. The last batch is filled up from the next pass.
    learning_rate: of Adam.
    """

    name: ClassVar[str] = "split-digits"
    summary: ClassVar[str] = "image stream: scikit-learn's digits, 5 tasks of 2 classes (class-, domain-, task-incremental)"
    strategy_settings: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "ewc": {"strength": 100.0},
        "replay": {"strength": 1.0, "capacity": 500, "batch_size": 32},
    }
    scenario_type: Literal["class", "domain", "task"] = "class"
    epochs: int = 10
    learning_rate: float = 1e-3
    eval_every: int = 512
    eval_envs: ClassVar[int] = 72

    def world(self, split: Split, num_envs: int, seed: int) -> World:
        world: Any = make_vec(
            "everloop/ImageStream-v0",
            num_envs,
            split=split,
            label_space="global" if self.scenario_type == "class" else "within_task",
            task_cue=self.scenario_type == "task",
            episode_length=32 if split == "train" else 1,  # a test is over after one pass, not after an episode
        )
        checked: World = world
        return checked

    def learner(self, world: World, seed: int) -> Learner:
        agent = Agent(
            world.single_observation_space,
            likelihood_for(world.single_action_space).size(),
            recurrent=False,
            head_per_task=self.scenario_type == "task",
        )
        return SupervisedLearner(agent, world, Training(self.learning_rate))

    def task_steps(self, world: World, task: int) -> int:
        if self.epochs < 1:
            raise ValueError(f"epochs is {self.epochs}, allowed: 1 or more")
        return self.epochs * world.examples(task)  # type: ignore[attr-defined, no-any-return]
