"""Any Gymnasium environments as one world with tasks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from everloop.contract import CUE, Observation, Task
from everloop.envs.changes import ActionChange, ObservationChange
from everloop.envs.modalities import Modalities
from everloop.envs.padding import Padding
from everloop.envs.task import TaskEnv, find_task
from everloop.envs.variant import Parameters, constructor_arguments, is_drift, make, without_effect

OWN = ("id", "name", "observation", "action", "wrappers")
"""Keys of a task that are no parameters of its environment."""


class EnvSequence(TaskEnv):
    """Any Gymnasium environments as one world, whose tasks differ in what you say.

    A task is a mapping. Its entries are arguments of the environment's constructor or attributes of
    the unwrapped environment, and these:

    | key | what it sets |
    |---|---|
    | `id` | the environment, if it is another one than `env` |
    | `name` | the name of the task; by default it is made of its entries |
    | `observation` | changes of what is seen, such as {"shift": 0.5}: see `ObservationChange` |
    | `action` | changes of what actions do, such as {"mirror": true}: see `ActionChange` |
    | `wrappers` | wrappers, as "package.module:Name" or as functions, the first one innermost |

    An attribute {"from": 9.8, "to": 20.0, "steps": 10000} drifts within its task, over that many
    steps of each copy. Observations become modalities (`Modalities`).

    Every episode is seeded from the world's own generator. So the world can give its state at any
    step: it is the seed of the episode and the actions since, which are played again.

    Args:
        env: ID of a registered environment; "module:id" imports the module first. It may be
            missing if every task names its own.
        tasks: The tasks, at least one.
        pad: Fill up the spaces of the tasks to one that holds them all, where they differ (see
            `Padding`). Otherwise different spaces are refused.
        task_cue: Show the task as the modality "cue", one-hot. Otherwise boundaries are hidden.
        max_episode_steps: Steps after which an episode is truncated; None for the registered limit.
        references: For each task the mean episode returns of a random agent and of the best one
            known, or null.
        render_mode: As in `gym.make`.

    Raises:
        ValueError: In one line, if an environment, a parameter or a change is unknown or wrong, or
            if the spaces of the tasks differ and `pad` is False.
    """

    metadata = {"render_modes": ["rgb_array", "human"]}  # noqa: RUF012

    def __init__(
        self,
        env: str | None = None,
        tasks: Sequence[Mapping[str, Any]] = ({},),
        pad: bool = False,
        task_cue: bool = False,
        max_episode_steps: int | None = None,
        references: Sequence[Sequence[float] | None] | None = None,
        render_mode: str | None = None,
    ) -> None:
        self.render_mode = render_mode
        self._variants = _variants(env, tasks, max_episode_steps, render_mode)
        self.tasks = tuple(
            Task(i, variant.name, dict(variant.given)) for i, variant in enumerate(self._variants)
        )
        _check_names(self.tasks)
        self._padding = Padding(
            [variant.change.space for variant in self._variants],
            [variant.env.action_space for variant in self._variants],
            pad,
            [task.name for task in self.tasks],
        )
        self._references = _checked(references, len(self.tasks))
        self._cue = task_cue
        shown = dict(self._padding.observation_space.spaces)
        if task_cue:
            shown[CUE] = spaces.Box(0.0, 1.0, (len(self.tasks),), np.float32)
        self.observation_space: spaces.Space[Any] = spaces.Dict(shown)
        self.action_space = self._padding.action_space
        self._steps = np.zeros(len(self.tasks), np.int64)  # of each task, before this episode
        self._seed = 0  # of this episode
        self._actions: list[Any] = []  # of this episode
        self._seen: Observation = {}

    @property
    def _variant(self) -> _Variant:
        return self._variants[self.task.id]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode of the task, as `TaskEnv` says. Other options go to the environment."""
        if hasattr(self, "task"):
            self._steps[self.task.id] += len(self._actions)
        super().reset(seed=seed, options=options)
        if seed is not None:
            self._steps[:] = 0
        self._seed = int(self.np_random.integers(2**31))
        others = {key: value for key, value in (options or {}).items() if key != "task"}
        return self._begin(others or None)

    def _begin(self, options: dict[str, Any] | None) -> tuple[Observation, dict[str, Any]]:
        """Begin the episode of seed `_seed`."""
        self._actions = []
        self._noise = np.random.default_rng([self._seed, 1])
        self._variant.set(int(self._steps[self.task.id]))
        observation, info = self._variant.env.reset(seed=self._seed, options=options)
        return self._show(observation), {**info, "task": self.task.id}

    def step(self, action: Any) -> tuple[Observation, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step the environment of the task."""
        variant = self._variant
        if variant.drifts:
            variant.set(int(self._steps[self.task.id]) + len(self._actions))
        self._actions.append(np.array(action))
        own = variant.act(self._padding.action(self.task.id, action))
        observation, reward, terminated, truncated, info = variant.env.step(own)
        return (
            self._show(observation),
            reward,
            terminated,
            truncated,
            {**info, "task": self.task.id},
        )

    def _show(self, observation: Any) -> Observation:
        """Return the modalities of an observation, changed and padded."""
        variant, k = self._variant, self.task.id
        changed = variant.change(variant.modalities(observation), self._noise)
        self._seen = self._padding.observation(k, changed)
        if self._cue:
            self._seen[CUE] = np.eye(len(self.tasks), dtype=np.float32)[k]
        return dict(self._seen)

    def reference(self, task: int | str) -> tuple[float, float]:
        return self._references[find_task(self.tasks, task).id]

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the generator, and the seed and the actions of the episode."""
        return {
            "task": self.task.id,
            "np_random": self.np_random.bit_generator.state,
            "steps": self._steps.copy(),
            "seed": self._seed,
            "actions": [action.copy() for action in self._actions],
            "seen": {name: x.copy() for name, x in self._seen.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned, by playing the episode so far again.

        Raises:
            ValueError: If the environment then shows something else than before.
        """
        self.task = self.tasks[state["task"]]
        self._steps, self._seed = state["steps"].copy(), state["seed"]
        self._begin(None)
        for action in state["actions"]:
            self.step(action)
        if any(not np.array_equal(x, self._seen[name]) for name, x in state["seen"].items()):
            raise ValueError(
                f"task {self.task.name} of {self._variant.env_id} shows something else after the "
                "same seed and the same actions, so it can't be restored; let it draw from "
                "np_random only"
            )
        self.np_random.bit_generator.state = state["np_random"]

    def without_effect(self, steps: int = 200) -> list[str]:
        """Return the names of tasks whose attributes change nothing in random play.

        An attribute may be one from which the environment has computed others when it was made. It
        is also named if its value is the environment's own. The episode in progress is lost.
        """
        return [variant.name for variant in self._variants if variant.without_effect(steps)]

    def render(self) -> Any:
        return self._variant.env.render()

    def close(self) -> None:
        for variant in self._variants:
            variant.env.close()


class _Variant:
    """One task's environment, with its parameters and changes.

    Args:
        given: The task's mapping.
        env: The environment, which tasks with the same arguments share.
        parameters: Its attributes.
        attributes: Those of them that the task sets.
    """

    def __init__(
        self,
        given: Mapping[str, Any],
        env_id: str,
        env: gym.Env[Any, Any],
        parameters: Parameters,
        attributes: Mapping[str, Any],
    ) -> None:
        self.given, self.env_id, self.env = given, env_id, env
        self._parameters, self._attributes = parameters, attributes
        for name, value in attributes.items():
            parameters.check(name, value)
        self.drifts = any(map(is_drift, attributes.values()))
        self.modalities = Modalities(env.observation_space)
        self.change = ObservationChange(given.get("observation", {}), self.modalities.space)
        self.act = ActionChange(given.get("action", {}), env.action_space)

    @property
    def name(self) -> str:
        """The task's name: the one given, or what distinguishes it."""
        if "name" in self.given:
            return str(self.given["name"])
        parts = [f"{key}={_text(value)}" for key, value in self.given.items() if key != "id"]
        own = [str(self.given["id"])] if "id" in self.given else []
        return " ".join([*own, *parts]) or self.env_id.rpartition(":")[2]

    def without_effect(self, steps: int) -> bool:
        """Return whether the task sets attributes that change nothing in so many steps."""
        still = {key: value for key, value in self._attributes.items() if not is_drift(value)}
        return bool(still) and without_effect(self.env, self._parameters, still, steps)

    def set(self, step: int) -> None:
        """Set the environment's attributes after so many steps of the task."""
        self._parameters.set(self._attributes, step)


def _text(value: Any) -> str:
    if is_drift(value):
        return f"{value['from']}..{value['to']}"
    return json.dumps(value, default=str).replace('"', "").replace(" ", "")


def _variants(
    env_id: str | None,
    tasks: Sequence[Mapping[str, Any]],
    max_episode_steps: int | None,
    render_mode: str | None,
) -> list[_Variant]:
    """Return the variant of each task. Tasks with the same arguments share an environment."""
    if isinstance(tasks, str | Mapping) or not tasks:
        raise ValueError(f"tasks is {tasks!r}; give a list of at least one task, each a mapping")
    made: dict[str, tuple[gym.Env[Any, Any], Parameters]] = {}
    variants = []
    for given in tasks:
        if not isinstance(given, Mapping):
            raise ValueError(
                f"task {given!r} is no mapping; write it as {{PARAMETER: VALUE}}, or {{}} for the "
                "environment as it is"
            )
        own_id = given.get("id", env_id)
        if not isinstance(own_id, str):
            raise ValueError(f"task {dict(given)} has no id; name its environment")
        takes = constructor_arguments(own_id)
        parameters = {key: value for key, value in given.items() if key not in OWN}
        attributes = {
            key: value for key, value in parameters.items() if key not in takes or is_drift(value)
        }
        arguments = {key: parameters[key] for key in parameters if key not in attributes}
        wrappers = given.get("wrappers", [])
        key = json.dumps([own_id, arguments, wrappers], sort_keys=True, default=repr)
        if key not in made:
            env = make(own_id, arguments, wrappers, max_episode_steps, render_mode)
            made[key] = env, Parameters(env)
        variants.append(_Variant(given, own_id, *made[key], attributes))
    return variants


def _check_names(tasks: Sequence[Task]) -> None:
    names = [task.name for task in tasks]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"{names.count(name)} tasks have the name {name!r}; give each a name of its own"
            )


def _checked(
    references: Sequence[Sequence[float] | None] | None, tasks: int
) -> list[tuple[float, float]]:
    """Return the two returns of each task, nan where unknown."""
    if references is None:
        return [(np.nan, np.nan)] * tasks
    if len(references) != tasks:
        raise ValueError(f"references are of {len(references)} tasks; there are {tasks}")
    for pair in references:
        if pair is not None and (len(pair) != 2 or not pair[0] < pair[1]):
            raise ValueError(
                f"a reference is {pair!r}; give the return of a random agent and a higher one of "
                "the best agent known"
            )
    return [(np.nan, np.nan) if pair is None else (pair[0], pair[1]) for pair in references]
