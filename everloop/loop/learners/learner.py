"""A learner: a model that learns from a world. What all kinds share is here."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from torch import Tensor

from everloop.contract import Observation, World
from everloop.loop.batch import Batch, to_tensor
from everloop.loop.learners.accompanied import Accompanied
from everloop.loop.world import check_finite, reset_to_tasks


class Learner(Accompanied):
    """A model that learns from a world: `begin(tasks, steps)`, then `advance()` until it returns 0.

    Attributes:
        world: What it learns from.
        notes: Options that have no effect here, each with the reason.
    """

    world: World
    notes: Sequence[str] = ()

    @abstractmethod
    def begin(self, tasks: Sequence[int], steps: int) -> None:
        """Begin a phase of `steps` world steps, or a few more to fill the last unit, divided among
        `tasks`.
        """

    @abstractmethod
    def advance(self) -> int:
        """Learn from one unit: a batch of a stream, or a rollout with its updates.

        Between two calls the learner is at rest: it may be evaluated, saved or changed.

        Returns:
            The world steps learned from; 0, and nothing is done, once the phase's steps are over.
        """

    def learn(self, tasks: Sequence[int], steps: int) -> None:
        """A whole phase: `begin`, and `advance` to its end."""
        self.begin(tasks, steps)
        while self.advance():
            pass

    def updates(self, steps: int) -> int | None:
        """How many optimizer steps a phase of `steps` world steps takes; None if that is not known
        in advance.
        """
        return None

    def seed(self, seed: int) -> None:
        """Seed what training draws from. A run begins with it."""
        torch.manual_seed(seed)

    def state_dict(self) -> dict[str, Any]:
        """All that `advance` depends on between two calls, but for the global generators of random
        numbers.

        Raises:
            ValueError: For a world that can't give its state.
        """
        return {"learned": self.learned(), "position": self.position()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave: this learner, made alike and with the same strategies
        attached, goes on as that one.

        Raises:
            ValueError: For the state of another network or of other strategies.
        """
        self.load_learned(state["learned"])
        self.load_position(state["position"])

    def position(self) -> dict[str, Any]:
        """Where the learner is in its phase and its world.

        Raises:
            ValueError: For a world that can't give its state.
        """
        world = self.world.state_dict()
        if world is None:
            raise ValueError(
                f"{type(self.world).__name__} can't give its state (state_dict is None), so the "
                "learner can't be saved here"
            )
        return {"steps": self.steps, "world": world}

    def load_position(self, state: Mapping[str, Any]) -> None:
        """Take over what `position` gave."""
        self.steps = state["steps"]
        self.world.load_state_dict(state["world"])

    @torch.no_grad()
    def act(
        self,
        obs: Observation,
        state: Tensor,
        start: npt.NDArray[np.bool_],
        generator: torch.Generator | None = None,
    ) -> tuple[npt.NDArray[Any], Tensor]:
        """Actions (B, ...) for one step and the state after it: the mode, or a draw if there is a
        generator.
        """
        tensors = {name: to_tensor(value, self.device)[None] for name, value in obs.items()}
        output, state = self.apply(self.module, tensors, state, to_tensor(start, self.device)[None])
        p = output.prediction[0]
        action = (
            self.likelihood.mode(p) if generator is None else self.likelihood.sample(p, generator)
        )
        return self.clip(action.cpu().numpy()), state

    def clip(self, action: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """`action` within the world's limits."""
        space = self.world.single_action_space
        return np.clip(action, space.low, space.high) if isinstance(space, spaces.Box) else action

    def rollout(self, world: World, tasks: Sequence[int], steps: int, seed: int) -> Batch:
        """Act for `steps` steps (a multiple of the sequence length) in `world`: examples of the
        agent's own experience.

        Actions are drawn from the policy with a generator of its own, so that nothing else that is
        random notices.
        """
        with self.evaluating():
            return self._rollout(world, tasks, steps, seed)

    def _rollout(self, world: World, tasks: Sequence[int], steps: int, seed: int) -> Batch:
        generator = torch.Generator(self.device).manual_seed(seed)
        obs, played = reset_to_tasks(world, tasks, seed)
        state = self.initial_state(world.num_envs)
        start = np.ones(world.num_envs, dtype=np.bool_)
        seen: list[Observation] = []
        rows: list[tuple[Any, Any, Any]] = []
        for _ in range(steps):
            check_finite(obs, self.steps)
            action, state = self.act(obs, state, start, generator)
            seen.append(obs)
            obs, _, terminated, truncated, info = world.step(action)
            rows.append((start, action, info.get("label")))
            start = terminated | truncated
        starts, actions, labels = zip(*rows, strict=True)
        return Batch(
            {name: to_tensor(np.stack([o[name] for o in seen]), self.device) for name in obs},
            to_tensor(np.stack(starts), self.device),
            None
            if labels[0] is None
            else to_tensor(np.stack(labels).astype(np.int64), self.device),
            to_tensor(np.stack(actions), self.device),
            to_tensor(played, self.device),
        ).sequences(self.sequence_length)
