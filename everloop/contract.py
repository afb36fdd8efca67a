"""What worlds, agents and the loop agree on. It imports none of them, and needs numpy only."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy.typing as npt

if TYPE_CHECKING:
    from gymnasium import spaces
    from torch import Tensor

Observation = dict[str, npt.NDArray[Any]]
"""One array a modality, by its name."""

CUE = "cue"
"""The modality that shows the task: one-hot, (K,) for K tasks."""
PRESENCE = "presence"
"""The modality that says which others are present: one number for each, in the order of their
names.
"""
FEEDBACK = "feedback"
"""The modality that holds the previous action and reward."""


@dataclass(frozen=True)
class Task:
    """One task of a world. A task is a value: the world knows how to play it.

    Args:
        id: Its position in the world's `tasks`.
        name: What people call it, unique in its world.
        params: What distinguishes it from the others, for people to read.
    """

    id: int
    name: str
    params: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Metric:
    """What the numbers of a result are.

    Args:
        name: "accuracy", "entity F1", "score" (0 random, 1 best known) or "return".
        unit: "%" for a share, which is shown times 100; else empty.
        evaluate: `evaluate(labels, guesses)`, a share from 0 to 1 computed from a whole pass over a
            task's test examples, labels and guesses (N, ...). None: the mean reward.
    """

    name: str
    unit: str = ""
    evaluate: Callable[[npt.NDArray[Any], npt.NDArray[Any]], float] | None = field(
        default=None, compare=False, repr=False
    )

    def text(self, value: float | None, missing: str = "-") -> str:
        """`value` as people read it: one decimal of a percentage, two of a score, four digits of a
        return.
        """
        if value is None or not math.isfinite(value):
            return missing
        if self.unit == "%":
            return f"{value + 0.0:.1f}"
        return f"{value:.2f}" if self.name == "score" else f"{value:.4g}"


ACCURACY = Metric("accuracy", "%")
RETURN = Metric("return")
SCORE = Metric("score")


class World(Protocol):
    """What the loop asks of a world: a `gymnasium.vector.VectorEnv` under SAME_STEP autoreset, with
    tasks.

    `reset(options=...)` takes "task", an id or a name, and "reset_mask", bool (num_envs,), which
    restricts the reset to some copies. A reset without a task keeps it. `info["task"]` holds each
    copy's task. A world of labelled examples reveals them in `info["label"]` after every step, and
    says in `info["epoch"]` in which pass over the task's examples the step was.
    """

    num_envs: int

    @property
    def tasks(self) -> Sequence[Task]: ...

    @property
    def single_observation_space(self) -> spaces.Space[Any]: ...

    @property
    def single_action_space(self) -> spaces.Space[Any]: ...

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]: ...

    def step(
        self, actions: npt.NDArray[Any]
    ) -> tuple[
        Observation, npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], dict[str, Any]
    ]: ...

    def close(self) -> None:
        """Let go of what the world holds. Whoever made it closes it."""

    def reference(self, task: int) -> tuple[float, float]:
        """(return of a random agent, return of the best known one) in an episode; nan where
        unknown.
        """

    def metric(self, task: int) -> Metric:
        """What an evaluation of `task` measures."""

    def examples(self, task: int) -> int | None:
        """The number of examples in one pass over the task's data; None for a world that is no data
        set.
        """

    def state_dict(self) -> dict[str, Any] | None:
        """Where the world stands: loaded into one made alike, that goes on as this one would.

        None if it can't say.
        """

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""


WORLD = ("tasks", "reference", "metric", "examples", "state_dict", "load_state_dict")
"""What a world has beside a Gymnasium environment."""


def check_world(world: Any) -> None:
    """Raise ValueError, in one line, for an environment without what makes it a world."""
    missing = [name for name in WORLD if not hasattr(world, name)]
    if missing:
        raise ValueError(
            f"{type(world).__name__} is no world: it has no {', '.join(missing)}; "
            "derive it from everloop.envs.TaskVectorEnv, or a wrapper from "
            "everloop.envs.TaskVectorWrapper"
        )


class NetworkOutput(Protocol):
    """What a network returns beside its state.

    `prediction` (T, B, P); of actor-critics also `value` (T, B); with a head for each of K tasks
    also `heads` (T, B, K, P), the outputs of all of them, of which the prediction is one.
    """

    @property
    def prediction(self) -> Tensor: ...

    @property
    def value(self) -> Tensor | None: ...

    @property
    def heads(self) -> Tensor | None: ...


class Output(NamedTuple):
    """A `NetworkOutput`, for networks and for whoever makes one up."""

    prediction: Tensor
    value: Tensor | None = None
    heads: Tensor | None = None
