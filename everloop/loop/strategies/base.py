"""The contract of a strategy: what it can do, and when.

One update of a stream, with every hook where it fires:

    stored    = strategy.recall(model)                         examples to replay, for each strategy
    output, replayed = network(fresh batch, stored)              one forward pass for all of them
    strategy.observe(fresh batch)                                memories store
    loss      = task_loss(output)
    loss     += strategy.output_loss(fresh batch, output)        regularises the outputs
    loss     += strategy.recall_loss(stored, replayed)           replay
    loss.backward()                                              unless no strategy wants_gradient
    strategy.extra_loss(fresh batch).backward()                 a loss with its own forward pass
    strategy.edit_gradients()                                    penalties, projections
    clip the gradient
    optimizer.step()
    strategy.after_step()                                        in reverse order of the list

`begin_task` comes before a task's first update and `end_task` after its last; `view` surrounds each
evaluation. In control, Stable-Baselines3 computes the task loss and steps the optimizer; there the
replayed examples have a forward pass of their own, just before `edit_gradients`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from everloop.contract import NetworkOutput, Task
from everloop.loop.batch import Batch
from everloop.loop.model import Model
from everloop.loop.state import declared, packed, unpack_into


@dataclass(frozen=True)
class Traits:
    """What a strategy requires, and what it is good for. `everloop advise` goes by it.

    Args: boundaries: True if it must be told where tasks begin and end. examples: True if it stores
        examples. copies: Numbers that it keeps for each weight of the network. grows: True if it
        keeps that many for each task. task_id: True if it needs the task ID in evaluation.
        class_incremental: True if it helps where every task brings new classes and the task ID is
        not given. streams: True if it works in labelled streams. control: True if it works in
        reinforcement learning. several_passes: True if it is meant for tasks whose examples are
        seen more than once. network: The architecture that it requires; empty for any. plasticity:
        True if it keeps the network able to learn, rather than from forgetting.
    """

    boundaries: bool = True
    examples: bool = False
    copies: float = 0
    grows: bool = False
    task_id: bool = False
    class_incremental: bool = False
    streams: bool = True
    control: bool = True
    several_passes: bool = False
    network: str = ""
    plasticity: bool = False


class Strategy:
    """Base class of all strategies. Every hook does nothing by default.

    A strategy does not know which model it works in, and can be combined with others. Strategies
    run in the order of their list, and in reverse order after a step. What a strategy keeps for
    each weight, it keeps by the weight's name, because other strategies may add weights during a
    task. Random numbers come from a generator of its own.
    """

    name: ClassVar[str] = "strategy"
    """Its name on the command line, in saved states and in messages; by default that of the class.
    """

    traits: ClassVar[Traits] = Traits()

    state: ClassVar[tuple[str, ...]] = ()
    """Names of the attributes to save, in addition to those of its base classes
    (`everloop.loop.state`).
    """

    replaces_loss: bool = False
    """True if this strategy replaces the task loss. At most one strategy of a run may."""

    adds_weights: bool = False
    """True if this strategy adds weights to the network. At most one strategy of a run may."""

    strength: float = 1.0
    """Weight of the strategy's effect; with 0 it is inactive."""

    @property
    def active(self) -> bool:
        """False if the strategy would change nothing.

        Inactive strategies are left out when strategies are attached.
        """
        return self.strength > 0

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "name" not in vars(cls):
            cls.name = cls.__name__

    def check(self, model: Model) -> None:
        """Check, before training, that this strategy can work in `model`.

        Raises:
            ValueError: If it cannot; the message says why and what to do.
        """

    def begin_task(self, task: Task, model: Model) -> None:
        """Called before the first update of `task`."""

    def observe(self, batch: Batch, model: Model) -> None:
        """Called once for each fresh batch. Memories store examples here."""

    def output_loss(self, model: Model, batch: Batch, output: NetworkOutput) -> Tensor | None:
        """A scalar to add to the loss of the fresh `batch`, or None.

        For losses of the outputs that need no other forward pass.

        Args:
            model: The model that is updated.
            batch: The fresh batch.
            output: The network's output for it, from which the task loss is computed. Where that
                loss belongs to another library, `output` holds leaf tensors, and the gradient that
                reaches them joins its own.
        """
        return None

    def recall(self, model: Model) -> Batch | None:
        """Stored examples to replay in the next update, or None.

        In streams they share one forward pass with the fresh batch, and are drawn before that is
        stored.
        """
        return None

    def recall_loss(self, model: Model, stored: Batch, output: NetworkOutput) -> Tensor:
        """A scalar to add to the loss, computed from the replayed examples `stored` and the
        network's `output` for them.
        """
        raise NotImplementedError(
            f"{type(self).__name__} recalls examples but has no recall_loss; define it"
        )

    def extra_loss(self, model: Model, batch: Batch | None) -> Tensor | None:
        """A scalar with a backward pass of its own, added to the gradient of the loss of `batch`,
        or None.
        """
        return None

    def wants_gradient(self, model: Model) -> bool:
        """False if `edit_gradients` discards the gradient of the loss.

        Streams then skip the backward pass.
        """
        return True

    def edit_gradients(self, model: Model, batch: Batch | None) -> None:
        """Change the parameters' `.grad` in place. Called after all losses and before clipping."""

    def after_step(self, model: Model) -> None:
        """Called after the optimizer's step, for the last strategy of the list first."""

    def end_task(self, task: Task, model: Model, batches: Sequence[Batch]) -> None:
        """Called after the last update of `task`, with examples of it in `batches`."""

    def view(self, task: Task, model: Model) -> AbstractContextManager[None]:
        """A context in which the network is as it should be for evaluating `task`."""
        return nullcontext()

    def state_dict(self) -> dict[str, Any]:
        """Copies of the attributes named in `state`: what a resumed run needs besides the network
        and the optimizer.
        """
        return packed(self, declared(type(self)))

    def load_state_dict(self, state: Mapping[str, Any], model: Model) -> None:
        """Restore a saved state. The strategy must be attached to `model` first.

        Weights that the strategy had added are added again. Load the states of the network and the
        optimizer after
        this: they hold the values.
        """
        unpack_into(self, state)
        self._restored(model)

    def _restored(self, model: Model) -> None:
        """Called after loading, to recompute what follows from the state."""


def states_of(strategies: Sequence[Strategy]) -> dict[str, dict[str, Any]]:
    """The state of each strategy by its name."""
    return {key: strategy.state_dict() for key, strategy in _keyed(strategies).items()}


def load_states(
    strategies: Sequence[Strategy], states: Mapping[str, Mapping[str, Any]], model: Model
) -> None:
    """Restore the state of each strategy by its name.

    Raises:
        ValueError: If the states belong to other strategies. Nothing is changed then.
    """
    keyed = _keyed(strategies)
    if set(keyed) != set(states):
        raise ValueError(
            f"the state is of the strategies {', '.join(states) or 'none'}; here are "
            f"{', '.join(keyed) or 'none'}"
        )
    for key, strategy in keyed.items():
        strategy.load_state_dict(states[key], model)


def _keyed(strategies: Sequence[Strategy]) -> dict[str, Strategy]:
    """The strategies by name. Later ones of the same name get a number."""
    names = [type(strategy).name for strategy in strategies]
    numbers = [names[: i + 1].count(name) for i, name in enumerate(names)]
    return {
        name if k == 1 else f"{name}-{k}": s
        for name, k, s in zip(names, numbers, strategies, strict=True)
    }


def check_strength(strength: float, name: str = "strength") -> float:
    """`strength`, or ValueError if it is negative or not finite."""
    check_range(name, strength, 0)
    return strength


def check_first(strategy: Strategy, name: str, model: Model) -> None:
    """Raise ValueError unless `strategy` is first: it changes weights at a task's end, and later
    strategies must see the result.
    """
    if model.strategies[0] is not strategy:
        raise ValueError(
            f"{name} must come first in the list of strategies; it is number "
            f"{list(model.strategies).index(strategy) + 1}"
        )


def check_may_grow(model: Model, strategy: str) -> None:
    """Raise ValueError if the network must keep the weights it has."""
    if not model.may_grow:
        raise ValueError(
            f"{strategy} adds weights, which the algorithm's target network would not get; use "
            "replay or ewc"
        )


def check_range(name: str, value: float, low: float, high: float = float("inf")) -> None:
    """Raise ValueError unless `value` is in [low, high]."""
    if not low <= value <= high or value == float("inf"):
        raise ValueError(
            f"{name} is {value}, allowed: "
            f"{f'{low} or more' if high == float('inf') else f'{low} to {high}'}"
        )


def check_choice(name: str, value: str, allowed: Iterable[str]) -> None:
    """Raise ValueError unless `value` is among those allowed."""
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}, allowed: {', '.join(allowed)}")
