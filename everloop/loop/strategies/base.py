"""The contract of a strategy: its hooks, and when each is called.

One update on a stream, with every hook at the point where it is called:

    stored    = strategy.recall(model)                  stored examples to replay
    output, replayed = network(fresh batch, stored)     one forward pass for all of them
    strategy.observe(fresh batch)                       memories store the fresh batch
    loss      = task_loss(output)
    loss     += strategy.loss(fresh, replayed)          or loss = ..., with REPLACES_LOSS
    loss.backward()
    strategy.edit_gradients(batch)                      penalties, projections
    clip the gradient
    optimizer.step()
    strategy.after_step(batch)                          strategies in reverse order

`check` is called before training, `begin_task` before a task's first update, and `end_task` after
its last one. `view` gives the context of each evaluation.

In control, and in a user's own training loop, other code computes the task loss and steps the
optimizer. There `loss` is called twice per update: with the fresh batch after the forward pass, and
with the replayed examples just before `edit_gradients`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from everloop.contract import NetworkOutput, Task
from everloop.loop.batch import Batch
from everloop.loop.model import Model
from everloop.loop.state import by_name, declared, packed, unpack_into


class Forward(NamedTuple):
    """A batch and the network's output for it."""

    batch: Batch
    output: NetworkOutput


class Effect(StrEnum):
    """What a strategy does to the loss or the weights, as far as it concerns other strategies."""

    REPLACES_LOSS = "replaces the task loss"
    ADDS_WEIGHTS = "adds weights to the network"
    DIVIDES_WEIGHTS = "divides the weights among tasks"
    FREEZES_WEIGHTS = "freezes weights"
    RESETS_WEIGHTS = "resets all weights at each task's end"


CONFLICTS = {
    (Effect.REPLACES_LOSS, Effect.REPLACES_LOSS),
    (Effect.ADDS_WEIGHTS, Effect.ADDS_WEIGHTS),
    (Effect.FREEZES_WEIGHTS, Effect.DIVIDES_WEIGHTS),
    (Effect.RESETS_WEIGHTS, Effect.ADDS_WEIGHTS),
    (Effect.RESETS_WEIGHTS, Effect.DIVIDES_WEIGHTS),
    (Effect.RESETS_WEIGHTS, Effect.FREEZES_WEIGHTS),
}
"""Pairs of effects that two strategies can't have together."""


@dataclass(frozen=True)
class Traits:
    """What a strategy requires and where it helps. `everloop advise` uses it.

    Args:
        boundaries: True if it needs to know where tasks begin and end.
        examples: True if it stores examples.
        copies: Numbers that it stores for each weight of the network, 0 or more.
        grows: True if it stores that many for every task.
        task_id: True if it needs the task ID in evaluation.
        one_head: True if it works only where the task ID is unavailable in evaluation.
        class_incremental: True if it helps where every task brings new classes and the task ID is
            unavailable.
        streams: True if it works on labelled streams.
        control: True if it works in reinforcement learning.
        several_passes: True if it is meant for tasks whose examples are seen more than once.
        network: The architecture that it requires; empty for any architecture.
        plasticity: True if it preserves the network's ability to learn, rather than past tasks.
        without_task_id: Settings with which it needs no task ID and stores nothing per task.
        without_boundaries: Settings with which it does not need to know where tasks begin and end.
        rank: Its rank, from 1 for the best, in published comparisons: in "control" (Wolczyk et al.
            2021, 2022; Rolnick et al. 2019), in "class"-incremental streams (van de Ven et al.
            2022, table 2; Buzzega et al. 2020; Caccia et al. 2022) and in "other" streams (van de
            Ven et al. 2022; Serra et al. 2018, table 1).
    """

    boundaries: bool = True
    examples: bool = False
    copies: float = 0
    grows: bool = False
    task_id: bool = False
    one_head: bool = False
    class_incremental: bool = False
    streams: bool = True
    control: bool = True
    several_passes: bool = False
    network: str = ""
    plasticity: bool = False
    without_task_id: Mapping[str, Any] = field(default_factory=dict)
    without_boundaries: Mapping[str, Any] = field(default_factory=dict)
    rank: Mapping[str, int] = field(default_factory=dict)


class Strategy:
    """Base class of all strategies. Every hook does nothing by default.

    A strategy does not know how the model is trained, and can be combined with others. Strategies
    run in the order of their list, and in reverse order after a step. Whatever a strategy stores
    for each weight is stored under the weight's name, because other strategies may add weights
    during a task. Each strategy draws random numbers from its own generator.
    """

    name: ClassVar[str] = "strategy"
    """Name on the command line, in saved states and in messages; by default the class's name."""

    traits: ClassVar[Traits] = Traits()

    effects: ClassVar[frozenset[Effect]] = frozenset()
    """What it does to the loss or the weights, as far as it concerns other strategies."""

    state: ClassVar[tuple[str, ...]] = ()
    """Names of the attributes to save, besides those of its base classes; see `loop.state`."""

    comes_first: bool = False
    """True if it must come first in a list of strategies.

    It changes weights at a task's end, and later strategies must see the changed weights.
    """

    strength: float = 1.0
    """Weight of the strategy's effect; with 0 it is inactive."""

    @property
    def active(self) -> bool:
        """False if the strategy would change nothing. Then it is left out when attached."""
        return self.strength > 0

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "name" not in vars(cls):
            cls.name = cls.__name__

    def check(self, model: Model) -> None:
        """Check, before training, that this strategy works with `model`.

        Raises:
            ValueError: If it does not. The message says why and what to do.
        """

    def begin_task(self, task: Task, model: Model) -> None:
        """Called before the first update of `task`."""

    def recall(self, model: Model) -> Batch | None:
        """Return stored examples to replay in the next update, or None.

        In streams they share one forward pass with the fresh batch. They are drawn before the fresh
        batch is stored.
        """
        return None

    def loss(self, fresh: Forward | None, replayed: Forward | None, model: Model) -> Tensor | None:
        """Return a scalar to add to the task loss, or None.

        With `Effect.REPLACES_LOSS`, the loss of the fresh batch replaces the task loss, unless it
        is None. A loss without a graph has no gradient, and only changes the reported loss.

        Args:
            fresh: The fresh batch with its output, or None. If another library computes the task
                loss, the output consists of leaf tensors. Their gradient is added to the gradient
                of that library's loss.
            replayed: The examples that `recall` returned with their output, or None. In streams
                both arguments are given in one call, elsewhere in separate calls.
            model: The model that is updated.
        """
        return None

    def edit_gradients(self, batch: Batch, model: Model) -> None:
        """Change the parameters' `.grad` in place.

        Called after the backward pass and before clipping.

        Args:
            batch: The fresh batch of the update.
            model: The model that is updated.
        """

    def after_step(self, batch: Batch, model: Model) -> None:
        """Called after the optimizer's step, in reverse order of the strategies."""

    def observe(self, batch: Batch, model: Model) -> None:
        """Called once for each fresh batch. Memories store examples here."""

    def end_task(self, task: Task, batches: Sequence[Batch], model: Model) -> None:
        """Called after the last update of `task`, with batches of its examples."""

    def view(self, task: Task, model: Model) -> AbstractContextManager[None]:
        """Return a context in which the network is prepared for evaluating `task`."""
        return nullcontext()

    def state_dict(self) -> dict[str, Any]:
        """Return copies of the attributes named in `state`.

        A resumed run needs them besides the network and the optimizer.
        """
        return packed(self, declared(type(self)))

    def load_state_dict(self, state: Mapping[str, Any], model: Model) -> None:
        """Restore a saved state. The strategy must be attached to `model` first.

        If the strategy had added weights to the network, they are added again. Load the states of
        the network and the optimizer afterwards, since they contain the values.
        """
        unpack_into(self, state)
        self._restored(model)

    def _restored(self, model: Model) -> None:
        """Recompute attributes that depend on the state. Called after loading."""


def check_combination(strategies: Sequence[Strategy]) -> None:
    """Raise ValueError if two of `strategies` can't be combined or their order is wrong."""
    for i, strategy in enumerate(strategies):
        if strategy.comes_first and i > 0:
            raise ValueError(
                f"{strategy.name} must come first in the list of strategies; it is number {i + 1}"
            )
        for other in strategies[:i]:
            _check_pair(other, strategy)


def _check_pair(first: Strategy, second: Strategy) -> None:
    for a in sorted(first.effects):
        for b in sorted(second.effects):
            if (a, b) in CONFLICTS or (b, a) in CONFLICTS:
                raise ValueError(
                    f"{first.name} {a} and {second.name} {b}, which can't be combined; use one of "
                    "the two"
                )


def states_of(strategies: Sequence[Strategy]) -> dict[str, dict[str, Any]]:
    """Return the state of each strategy, by the strategy's name."""
    return {key: strategy.state_dict() for key, strategy in _keyed(strategies).items()}


def load_states(
    strategies: Sequence[Strategy], states: Mapping[str, Mapping[str, Any]], model: Model
) -> None:
    """Restore the state of each strategy.

    Args:
        strategies: Strategies that are attached to `model`.
        states: What `states_of` returned.
        model: The model of the strategies.

    Raises:
        ValueError: If the states belong to other strategies. Nothing has changed then.
    """
    keyed = _keyed(strategies)
    if set(keyed) != set(states):
        raise ValueError(
            f"the state is of the strategies {', '.join(states) or 'none'}; attach these "
            f"instead of {', '.join(keyed) or 'none'}"
        )
    for key, strategy in keyed.items():
        strategy.load_state_dict(states[key], model)


def _keyed(strategies: Sequence[Strategy]) -> dict[str, Strategy]:
    return by_name((type(strategy).name, strategy) for strategy in strategies)


def check_strength(strength: float, name: str = "strength") -> float:
    """Return `strength`. Raise ValueError if it is negative or not finite."""
    check_range(name, strength, 0)
    return strength


def check_new_weights(model: Model, strategy: str) -> None:
    """Raise ValueError if no weights can be added to the network."""
    if not model.supports_new_weights:
        raise ValueError(
            f"{strategy} adds weights, which the algorithm's target network would not get; use "
            "replay or ewc"
        )


def check_range(name: str, value: float, low: float, high: float = float("inf")) -> None:
    """Raise ValueError unless `value` is in [low, high]."""
    if not low <= value <= high or value == float("inf"):
        allowed = f"{low} or more" if high == float("inf") else f"from {low} to {high}"
        raise ValueError(f"{name} is {value}; it must be {allowed}")


def check_choice(name: str, value: str, allowed: Iterable[str]) -> None:
    """Raise ValueError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; choose one of {', '.join(allowed)}")
