"""The base class of learners: models that learn from a world."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from everloop.contract import KeepsStatistics, Observation, World
from everloop.loop.actions import ActionUnits
from everloop.loop.batch import Batch, to_tensor
from everloop.loop.learners.accompanied import Accompanied
from everloop.loop.learners.shown import Shown
from everloop.loop.weights import initialise
from everloop.loop.world import check_finite, check_tasks, mixed_tasks, reset_to_tasks


class Learner(Accompanied):
    """A model that learns from a world.

    Call `begin(tasks, steps)`, then `advance()` until it returns 0.

    Attributes:
        world: The world it learns from.
        shown: The examples that it has been shown in the phase in progress, for samples at the end
            of a task.
        notes: One line for each option that has no effect here, with the reason.
    """

    world: World
    shown: Shown
    notes: Sequence[str] = ()

    reset_seed: int = 0
    """Seed of the run, for resets of a world that can't give its state; set by the run."""

    rate_factor: float = 1.0
    """What the learning rates of the settings are multiplied by; see `scale_rate`."""

    _tasks: list[int] | None = None
    """IDs of the tasks of the current phase."""

    @abstractmethod
    def begin(self, tasks: Sequence[int], steps: int) -> None:
        """Begin a phase of training.

        Args:
            tasks: IDs of the tasks. The world's copies are divided among them.
            steps: World steps of the phase, 1 or more. A few more are taken if the last unit would
                be incomplete.
        """

    @abstractmethod
    def advance(self) -> int:
        """Learn from one unit: a batch of a stream, or a rollout with its updates.

        Between two calls the learner may be evaluated, saved or changed.

        Returns:
            Number of world steps learned from. At the end of the phase nothing is done, and the
            number is 0.
        """

    @abstractmethod
    def reset_world(self) -> None:
        """Reset all copies of the world to the tasks of the phase, seeded from the step.

        Episodes in progress are cut off, without counting as ended.
        """

    @property
    def gives_state(self) -> bool:
        """True if the world can give its state, so that it can be restored in the middle of it."""
        return self.world.state_dict() is not None

    @property
    def _place(self) -> tuple[int, int]:
        """What the world's resets are seeded from: the run's seed and the step."""
        return self.reset_seed, self.steps

    @cached_property
    def _statistics(self) -> list[KeepsStatistics]:
        """The networks with statistics of their observations, found once."""
        return [part for part in self.networks.modules() if isinstance(part, KeepsStatistics)]

    def _begin_phase(self, tasks: Sequence[int]) -> bool:
        """Do what all learners do when a phase of `tasks` begins. Subclasses call it in `begin`.

        Returns:
            True if a phase of other tasks came before.
        """
        self.shown.clear()
        before, self._tasks = self._tasks, list(tasks)
        if before is not None:
            for network in self._statistics:
                network.end_first_phase()
        return before is not None and before != self._tasks

    def _see(self, batch: Batch) -> None:
        """Add new experience to the networks' statistics. Subclasses call it in `advance`."""
        for network in self._statistics:
            network.update_statistics(batch.obs)

    def learn(self, tasks: Sequence[int], steps: int) -> None:
        """Train for a whole phase: call `begin`, then `advance` until it returns 0."""
        self.begin(tasks, steps)
        while self.advance():
            pass

    @property
    def unit(self) -> int:
        """World steps of one `advance`; a phase takes whole units."""
        return self.world.num_envs

    def updates(self, steps: int) -> int | None:
        """Return the number of optimizer steps in a phase of `steps` world steps.

        None if it is not known in advance.
        """
        return None

    def initialise(self, weights: Mapping[str, Tensor], source: str) -> list[str]:
        """Start from the weights of another network; see `everloop.loop.weights.initialise`.

        Call it before strategies are attached. Only the network that strategies see is concerned:
        not critics, optimizers or replay buffers.
        """
        return initialise(self, weights, source)

    def seed(self, seed: int) -> None:
        """Seed the global random generators of Python, numpy and torch. A run calls this first."""
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that `advance` depends on, except for the global random generators."""
        return {"learned": self.learned(), "position": self.position()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned, and continue training from there.

        This learner must be built in the same way and have the same strategies attached.

        Raises:
            ValueError: If the state belongs to another network or to other strategies.
        """
        self.load_learned(state["learned"])
        self.load_position(state["position"])
        if state["position"]["world"] is None and self._tasks is not None:
            self.reset_world()

    def scale_rate(self, factor: float) -> None:
        """Multiply the learning rates of the settings by `factor`, above 0, from now on.

        It stays so in later phases, whatever the schedule.
        """
        for group in self.optimizer.param_groups:
            group["lr"] *= factor / self.rate_factor
        self._set_rate_factor(factor)

    def _set_rate_factor(self, factor: float) -> None:
        """Note the factor, also as the optimizer's default, from which strategies train."""
        self.optimizer.defaults["lr"] *= factor / self.rate_factor
        self.rate_factor = factor

    def learned(self) -> dict[str, Any]:
        return {**super().learned(), "rate_factor": self.rate_factor}

    def load_learned(self, state: Mapping[str, Any]) -> None:
        super().load_learned(state)
        self._set_rate_factor(state["rate_factor"])

    def position(self) -> dict[str, Any]:
        """Return the learner's position in its phase and its world."""
        return {
            "steps": self.steps,
            "world": self.world.state_dict(),
            "tasks": self._tasks,
            "shown": self.shown.state_dict(),
            "tally": self.tally.state_dict(),
        }

    def load_position(self, state: Mapping[str, Any]) -> None:
        """Restore what `position` returned.

        A world that can't give its state must then be reset by `reset_world`.
        """
        self.steps, self._tasks = state["steps"], state["tasks"]
        if state["world"] is not None:
            self.world.load_state_dict(state["world"])
        self.shown.load_state_dict(state["shown"])
        self.tally.load_state_dict(state["tally"])

    def act(
        self,
        obs: Observation,
        state: Tensor,
        start: npt.NDArray[np.bool_],
        generator: torch.Generator | None = None,
    ) -> tuple[npt.NDArray[Any], Tensor]:
        """Return the world's actions (B, ...): what `choose` returns, in the world's units."""
        action, state = self.choose(obs, state, start, generator)
        return self.units.to_world(action), state

    @torch.no_grad()
    def choose(
        self,
        obs: Observation,
        state: Tensor,
        start: npt.NDArray[np.bool_],
        generator: torch.Generator | None = None,
    ) -> tuple[npt.NDArray[Any], Tensor]:
        """Return actions (B, ...) for one step, in the network's units, and its next state (B, H).

        Sampled actions may lie outside the bounds of the action space.

        Args:
            obs: Observations of all copies of the world, by modality, (B, ...).
            state: The network's memory, (B, H).
            start: bool (B,), True where an episode begins.
            generator: Generator to sample the actions with. None takes the most likely ones.
        """
        tensors = {name: to_tensor(value, self.device)[None] for name, value in obs.items()}
        output, state = self.apply(self.module, tensors, state, to_tensor(start, self.device)[None])
        p = output.prediction[0]
        if generator is None:
            action = self.likelihood.mode(p)
        else:
            action = self.likelihood.sample(p, generator)
        return action.cpu().numpy(), state

    @cached_property
    def units(self) -> ActionUnits:
        """The units of the world's actions, and those of the network's, which batches hold."""
        return ActionUnits(self.world.single_action_space)

    def rollout(self, world: World, tasks: Sequence[int], steps: int, seed: int) -> Batch:
        """Act in `world` and return the experience as examples of `sequence_length` steps.

        Actions are sampled from the policy with a separate generator, so no other random number
        changes.

        Args:
            world: The world to act in.
            tasks: IDs of the tasks, divided among the world's copies. With several tasks of a data
                set the batch names no tasks, because each step may be of another one.
            steps: Steps of each copy, a multiple of the sequence length.
            seed: Seed of the world and of the actions, 0 or more.
        """
        with self.evaluating():
            return self._rollout(world, tasks, steps, seed)

    def _rollout(self, world: World, tasks: Sequence[int], steps: int, seed: int) -> Batch:
        generator = torch.Generator(self.device).manual_seed(seed)
        obs, played = reset_to_tasks(world, tasks, seed)
        mixed = mixed_tasks(world, tasks)
        state = self.initial_state(world.num_envs)
        start = np.ones(world.num_envs, dtype=np.bool_)
        seen: list[Observation] = []
        rows: list[tuple[Any, Any, Any]] = []
        for _ in range(steps):
            check_finite(obs, self.steps)
            # Stored as sampled: a clipped action has another likelihood.
            action, state = self.choose(obs, state, start, generator)
            seen.append(obs)
            obs, _, terminated, truncated, info = world.step(self.units.to_world(action))
            check_tasks(world, info, played, mixed)
            rows.append((start, action, info.get("label")))
            start = terminated | truncated
        starts, actions, labels = zip(*rows, strict=True)
        target = None
        if labels[0] is not None:
            target = to_tensor(np.stack(labels).astype(np.int64), self.device)
        experience = Batch(
            {name: to_tensor(np.stack([o[name] for o in seen]), self.device) for name in obs},
            to_tensor(np.stack(starts), self.device),
            target=target,
            action=to_tensor(np.stack(actions), self.device),
            task=None if mixed else to_tensor(played, self.device),
        )
        return experience.sequences(self.sequence_length)
