"""One space for tasks whose spaces differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from everloop.contract import PRESENCE, Observation, modality_kind


class Padding:
    """Fills up the observations and actions of several tasks to one space.

    - Bounds are widened to those of all tasks; that needs no `pad`.
    - A vector is filled up with zeros at its end. A modality that a task lacks is all zeros, and
      the modality "presence" says which ones are there.
    - Discrete actions: there are as many as in the task with the most. A task takes action a modulo
      its own number, so that an action too many does what another one does.
    - Box actions: a task takes the first ones and ignores the rest. Where bounds differ, the common
      ones are [-1, 1], and each task stretches them to its own.

    Args:
        observed: The Dict of modalities of each task.
        actions: The action space of each task.
        pad: Whether spaces may differ.
        names: The names of the tasks, for messages.

    Attributes:
        observation_space: The common Dict of modalities.
        action_space: The common action space.

    Raises:
        ValueError: If spaces differ and `pad` is False, or if they can't be filled up: pictures of
            different sizes, or actions of different kinds.
    """

    def __init__(
        self,
        observed: Sequence[spaces.Dict],
        actions: Sequence[spaces.Space[Any]],
        pad: bool,
        names: Sequence[str],
    ) -> None:
        layouts = [_layout(space) for space in observed]
        for what, found, alike in (
            ("observation", observed, layouts),
            ("action", actions, actions),
        ):
            other = next((i for i in range(len(found)) if alike[i] != alike[0]), None)
            if other is not None and not pad:
                raise ValueError(
                    f"the {what} space of task {names[other]} is {found[other]}, that of task "
                    f"{names[0]} is {found[0]}; fill them up by pad"
                )
        self._observed, self._actions = list(observed), list(actions)
        self._same = all(layout == layouts[0] for layout in layouts)
        self._mixed = any(set(space.spaces) != set(observed[0].spaces) for space in observed)
        self.observation_space = self._common()
        self.action_space = (
            actions[0]
            if all(space == actions[0] for space in actions)
            else _common_actions(actions, names)
        )

    def _common(self) -> spaces.Dict:
        parts: dict[str, spaces.Space[Any]] = {}
        for name in sorted({name for space in self._observed for name in space.spaces}):
            boxes = [space[name] for space in self._observed if name in space.spaces]
            parts[name] = _common_box(name, boxes, len(self._observed))
        if self._mixed:
            parts[PRESENCE] = spaces.Box(0.0, 1.0, (len(parts),), np.float32)
        return spaces.Dict(parts)

    def observation(self, task: int, observation: Observation) -> Observation:
        """Return an observation of a task in the common space."""
        if self._same:
            return observation
        padded: Observation = {}
        for name, box in self.observation_space.spaces.items():
            if name == PRESENCE:
                continue
            padded[name] = np.zeros(box.shape or (), box.dtype)
            if name in observation:
                x = observation[name]
                padded[name][tuple(slice(n) for n in x.shape)] = x
        if self._mixed:
            names = [name for name in self.observation_space.spaces if name != PRESENCE]
            padded[PRESENCE] = np.array([name in observation for name in names], np.float32)
        return padded

    def action(self, task: int, action: Any) -> Any:
        """Return the action of a task for an action in the common space."""
        own = self._actions[task]
        if own == self.action_space:
            return action
        if isinstance(own, spaces.Discrete):
            return int(own.start) + int(action) % int(own.n)
        assert isinstance(own, spaces.Box), "the kinds were checked"
        a = np.asarray(action).reshape(-1)[: int(np.prod(own.shape))].reshape(own.shape)
        assert isinstance(self.action_space, spaces.Box), "the kinds were checked"
        if not _like_bounds(own, self.action_space):
            a = own.low + (own.high - own.low) * (a + 1) / 2
        return a.astype(own.dtype)


def _layout(space: spaces.Dict) -> dict[str, Any]:
    """Return the names, shapes and dtypes of modalities, whatever their bounds are."""
    return {name: (part.shape, part.dtype) for name, part in space.spaces.items()}


def _like_bounds(own: spaces.Box, common: spaces.Box) -> bool:
    """Return whether a space has the common bounds in its own dimensions."""
    size = int(np.prod(own.shape))
    return bool(
        (own.low.reshape(-1) == common.low[:size]).all()
        and (own.high.reshape(-1) == common.high[:size]).all()
    )


def _common_box(name: str, boxes: Sequence[spaces.Space[Any]], tasks: int) -> spaces.Space[Any]:
    """Return a space that holds one modality of the tasks that have it."""
    first = boxes[0]
    if len(boxes) == tasks and all(box == first for box in boxes):
        return first
    plain = [box for box in boxes if isinstance(box, spaces.Box)]
    kinds = {modality_kind(name, box) for box in plain}
    axes = {len(box.shape) for box in plain}
    if kinds != {"vector"} or len(axes) > 1:
        raise ValueError(
            f"modality {name!r} is {' or '.join(map(str, boxes))}, depending on the task; only "
            "vectors of one number of axes can be filled up, so wrap the environments"
        )
    shape = tuple(max(sizes) for sizes in zip(*(box.shape for box in plain), strict=True))
    filled = any(box.shape != shape for box in plain) or len(plain) < tasks
    low: npt.NDArray[Any] = np.full(shape, 0.0 if filled else np.inf, np.float32)
    high: npt.NDArray[Any] = np.full(shape, 0.0 if filled else -np.inf, np.float32)
    for box in plain:
        inside = tuple(slice(n) for n in box.shape)
        low[inside] = np.minimum(low[inside], box.low)
        high[inside] = np.maximum(high[inside], box.high)
    return spaces.Box(low, high, dtype=np.float32)


def _common_actions(
    actions: Sequence[spaces.Space[Any]], names: Sequence[str]
) -> spaces.Space[Any]:
    """Return an action space for all tasks."""
    if all(isinstance(space, spaces.Discrete) for space in actions):
        return spaces.Discrete(max(int(space.n) for space in actions))  # type: ignore[attr-defined]
    boxes = [space for space in actions if isinstance(space, spaces.Box)]
    if len(boxes) < len(actions):
        kinds = ", ".join(
            f"{space} in task {name}" for space, name in zip(actions, names, strict=True)
        )
        raise ValueError(
            f"the action spaces are {kinds}; only Discrete ones or only Boxes can be filled up"
        )
    size = max(int(np.prod(box.shape)) for box in boxes)
    largest = next(box for box in boxes if int(np.prod(box.shape)) == size)
    flat = spaces.Box(largest.low.reshape(-1), largest.high.reshape(-1), dtype=np.float32)
    if all(_like_bounds(box, flat) for box in boxes):
        return flat
    return spaces.Box(-1.0, 1.0, (size,), np.float32)
