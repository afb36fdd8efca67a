"""The contract that worlds, agents and the loop share. It needs numpy only and imports none."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from gymnasium import spaces
    from torch import Tensor

Observation = dict[str, npt.NDArray[Any]]
"""Modality name -> its array."""

CUE = "cue"
"""Name of the modality that shows the task: one-hot, (K,) for K tasks."""
PRESENCE = "presence"
"""Name of the modality that says which others are present: 1 or 0 for each, sorted by name."""
FEEDBACK = "feedback"
"""Name of the modality that holds the previous action and reward."""
LONGEST_EPISODE = 100_000
"""Steps within which an episode must end. An evaluation of an endless one would never end."""

Kind = Literal["vector", "picture", "tokens"]


def modality_kind(name: str, space: spaces.Box) -> Kind:
    """Return what a modality is, which its space says.

    - "tokens": a space with a `vocabulary`, such as `everloop.envs.Tokens`.
    - "picture": uint8 (H, W, C).
    - "vector": numbers of any other dtype and of any other number of axes, also integers.

    Args:
        name: Name of the modality, for the message.
        space: Its space.

    Raises:
        ValueError: If the space leaves it open: uint8 that is not (H, W, C), or other numbers with
            three axes.
    """
    shape = space.shape
    if getattr(space, "vocabulary", None) is not None:
        return "tokens"
    if space.dtype != "uint8" and len(shape) != 3:
        return "vector"
    if space.dtype == "uint8" and len(shape) == 3 and not shape[0] <= 4 < shape[2]:
        return "picture"
    raise ValueError(
        f"modality {name!r} is {space.dtype} of shape {shape}, but a picture is uint8 of shape "
        "(height, width, channels), and a vector is of another dtype with other than three axes; "
        "change the world"
    )


@dataclass(frozen=True)
class Task:
    """One task of a world. A task is a value: the world knows how to play it.

    Args:
        id: Position in the world's `tasks`, from 0.
        name: Name for people to read, unique in its world.
        params: What distinguishes the task from the others, for people to read.
    """

    id: int
    name: str
    params: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Metric:
    """What the numbers of a result measure.

    Args:
        name: "accuracy", "entity F1", "score" (0 random, 1 best known) or "return".
        unit: "%" for a share, whose values must already be in percent for `text`; else empty.
        evaluate: `evaluate(labels, guesses)` returns a share from 0 to 1, computed from one whole
            pass over a task's test examples, labels and guesses (N, ...). None means the mean
            reward.
        new_classes: True if each task has classes that no other task has, and all are told apart.
            A task can't be right before it is trained then, so forward transfer means nothing.
    """

    name: str
    unit: str = ""
    evaluate: Callable[[npt.NDArray[Any], npt.NDArray[Any]], float] | None = field(
        default=None, compare=False, repr=False
    )
    new_classes: bool = field(default=False, compare=False)

    def text(self, value: float | None, missing: str = "-") -> str:
        """Format `value` for people to read.

        Percentages get one decimal, scores two, and returns four significant digits.

        Args:
            value: The value in the metric's unit.
            missing: The text for None, nan and infinity.
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
    """A world as the loop sees it: a Gymnasium vector environment with tasks.

    It is a `gymnasium.vector.VectorEnv` under SAME_STEP autoreset. `reset(options=...)` takes
    "task", an id or a name, and "reset_mask", bool (num_envs,), which restricts the reset to some
    copies. A reset without a task keeps the current one. `info["task"]` holds each copy's task,
    (num_envs,). After every step a world of labelled examples returns their labels in
    `info["label"]`, and in `info["epoch"]` the pass over the task's examples.
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
        """Release the world's resources. Whoever made the world closes it."""

    def reference(self, task: int) -> tuple[float, float]:
        """Return the episode returns of a random and of the best known agent; nan if unknown."""

    def metric(self, task: int) -> Metric:
        """Return what an evaluation of `task` measures."""

    def examples(self, task: int | Sequence[int]) -> int | None:
        """Return the number of examples in one pass over the task; None if it is no data set.

        Several tasks ask for a shuffled pass over the union of their examples. A world that can
        serve it returns its length here, and takes the same tasks as the option "task" of `reset`;
        `info["task"]` then holds the task of the example that each copy shows. Other worlds return
        None; for them the copies are divided among the tasks.
        """

    def show(
        self, task: int, rows: npt.NDArray[np.int64]
    ) -> tuple[Observation, npt.NDArray[np.int64]] | None:
        """Return examples of a task and their labels, without any effect on the world.

        None if it is no data set, or one whose examples can't be shown again. After every step of a
        world that can, the info holds "index", the row of each example in the data set; "origin",
        the id of the task that it belongs to; "leaked", whether that is another task than the
        current one; and "ood", whether the example was altered.

        Args:
            task: Id of the task.
            rows: What `info["index"]` was when the examples were shown, (n,).
        """

    def state_dict(self) -> dict[str, Any] | None:
        """Return the complete state: a world made alike continues from it as this one would.

        None means that the world cannot return its state.
        """

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""


WORLD = ("tasks", "reference", "metric", "examples", "show", "state_dict", "load_state_dict")
"""The names that make a Gymnasium environment a world."""


def check_world(world: Any) -> None:
    """Raise ValueError, in one line, if the environment lacks one of the names in `WORLD`."""
    missing = [name for name in WORLD if not hasattr(world, name)]
    inner = world
    while missing and (inner := getattr(inner, "env", None)) is not None:
        if hasattr(inner, "tasks"):
            name = type(world).__name__
            raise ValueError(
                f"{name} hides that it wraps a world; use "
                f"everloop.envs.TaskVectorWrapper({name}(...))"
            )
    if missing:
        raise ValueError(
            f"{type(world).__name__} is not a world: it has no {', '.join(missing)}; derive it "
            "from everloop.envs.TaskVectorEnv, or from everloop.envs.TaskVectorWrapper if it is a "
            "wrapper"
        )


class NetworkOutput(Protocol):
    """What a network returns besides its state.

    Attributes:
        prediction: (T, B, P).
        value: The state's value, (T, B), of an actor-critic; else None.
        heads: The outputs of the heads of all K tasks, (T, B, K, P), of which the prediction is
            one; None for a network with a single head.
    """

    @property
    def prediction(self) -> Tensor: ...

    @property
    def value(self) -> Tensor | None: ...

    @property
    def heads(self) -> Tensor | None: ...


@runtime_checkable
class KeepsStatistics(Protocol):
    """A network with statistics of its observations, which forward passes do not change."""

    def update_statistics(self, obs: Mapping[str, Tensor]) -> None:
        """Add new experience, (T, B, ...) by modality. Called once for each example of training."""

    def end_first_phase(self) -> None:
        """Called when a later phase of training begins."""


class Output(NamedTuple):
    """A `NetworkOutput` as a plain tuple."""

    prediction: Tensor
    value: Tensor | None = None
    heads: Tensor | None = None
