"""The contract of a strategy: its hooks, and when each is called.

A stream is a sequence of batches of labelled examples, on which everloop's own loop trains. Control
is reinforcement learning. The task loss is the loss without any strategy. The first update on a
batch of a stream calls these hooks; each hook also gets the model as its last argument.

    stored    = strategy.recall()                       stored examples to replay, or None
    output, replayed = network(batch, stored)           one forward pass for all of them
    strategy.observe(batch)                             memories store the batch
    loss      = task_loss(output), or the loss of the one strategy that replaces it
    loss     += strategy.loss(fresh, replayed)          for all other strategies
    loss.backward()
    strategy.edit_gradients(batch)                      e.g. project the gradient
    clip the gradient
    optimizer.step()
    strategy.after_step(batch)                          in reverse order of the strategies

`fresh` is the batch with its output, and `replayed` what this strategy recalled, with its output.
The first strategy in the list is the last in `after_step`, so it has the last word on the weights.
Further updates on the same batch skip `observe`. If the gradients of several batches are
accumulated, `edit_gradients` and all that follows run once, with the last of these batches.

`check` is called before training, `begin_task` before a task's first update, and `end_task` after
its last one. A boundary that is declared within a task calls `end_task` and then `begin_task`. Each
evaluation of a task runs inside the context that `view` returns.

In control, and in a user's own training loop, other code computes the task loss and steps the
optimizer. There the order is:

    strategy.observe(experience)                        once, as soon as it has arrived
    strategy.loss(fresh, None)                          in each forward pass of a batch
    the other code's loss.backward() and optimizer.step(), and inside this step:
        stored = strategy.recall()
        strategy.loss(None, replayed)                   in a forward pass of its own
        strategy.edit_gradients(batch), clip, step, strategy.after_step(batch)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from everloop.contract import NetworkOutput, Task
from everloop.loop.batch import Batch
from everloop.loop.model import Model
from everloop.loop.state import (
    by_name,
    declared,
    move_state,
    packed,
    unpack_into,
    with_arrays,
    without_arrays,
)


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
"""Effects that can't be combined: one strategy has the first, another one the second."""


@dataclass(frozen=True)
class Traits:
    """What a strategy requires and where it helps, as `everloop advise` uses it.

    Args:
        boundaries: True if it needs to know where tasks begin and end.
        examples: True if it stores examples.
        copies: How many numbers it stores per weight of the network, 0 or more.
        grows: True if it stores `copies` numbers per weight for every task.
        task_id: True if it needs the task ID in evaluation.
        one_head: True if it works only with a single head for all classes, and so without a task ID
            in evaluation.
        class_incremental: True if it helps where every task brings new classes and the task ID is
            unavailable.
        streams: True if it works on labelled streams.
        control: True if it works in reinforcement learning.
        several_passes: True if it is meant for tasks whose examples are seen more than once.
        network: The architecture that it requires; empty for any architecture.
        plasticity: True if it preserves the network's ability to learn, rather than past tasks.
        without_task_id: Its settings, name -> value, with which it needs no task ID and stores
            nothing per task.
        without_boundaries: Its settings, name -> value, with which it does not need to know where
            tasks begin and end.
        rank: Its rank in published comparisons, 1 for the best, by the kind of world.
            "control": Wolczyk et al. 2021, 2022; Rolnick et al. 2019.
            "class", class-incremental streams: van de Ven et al. 2022, table 2; Buzzega et al.
            2020; Caccia et al. 2022.
            "other", other streams: van de Ven et al. 2022; Serra et al. 2018, table 1.
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

    comes_last: bool = False
    """True if it must come last in a list of strategies.

    It changes the optimizer's step, and the others must see the changed step.
    """

    strength: float = 1.0
    """Weight of the strategy's effect; with 0 it is inactive."""

    @property
    def active(self) -> bool:
        """False if the strategy would change nothing. Attaching then leaves it out."""
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
        """Called before the first update of `task`, each time it is learned.

        Also called after a boundary that is declared within the task.
        """

    def recall(self, model: Model) -> Batch | None:
        """Return stored examples to replay in the next update, or None.

        On a stream, stored examples share one forward pass with the fresh batch. The first update
        on a batch calls `recall` before `observe`, so the batch is not replayed to itself. In
        control, and in a user's own training loop, `recall` is called after `observe`.
        """
        return None

    def loss(self, fresh: Forward | None, replayed: Forward | None, model: Model) -> Tensor | None:
        """Return a scalar to add to the task loss, or None.

        With `Effect.REPLACES_LOSS`, the returned loss replaces the task loss, unless it is None; in
        a user's own training loop only its part for the fresh batch does, and the part for replayed
        examples is added. What other strategies return is added. Control refuses strategies that
        replace the loss.

        If a loss depends on no weight, an added one only changes the reported loss, and a replacing
        one leaves a zero gradient.

        Args:
            fresh: The fresh batch with its output, or None. If other code computes the task loss,
                the output is detached from the network, and the returned loss reaches the network
                by its gradient with respect to this output.
            replayed: The examples that this strategy recalled, with their output, or None. In
                streams both arguments are given in one call, elsewhere in separate calls.
            model: The model that is updated.
        """
        return None

    def edit_gradients(self, batch: Batch, model: Model) -> None:
        """Change the parameters' `.grad` in place.

        Called after the backward pass and before clipping.

        Args:
            batch: The batch that the task loss was computed on: on a stream the augmented batch, in
                control a minibatch, whose examples have `sequence_length` steps. If gradients are
                accumulated, the last batch of the step.
            model: The model that is updated.
        """

    def after_step(self, batch: Batch, model: Model) -> None:
        """Called after the optimizer's step, with the same batch as `edit_gradients`.

        The strategies are called in reverse order.
        """

    def observe(self, batch: Batch, model: Model) -> None:
        """Called once with the examples that have just arrived, before they are augmented.

        Memories store examples here.
        """

    def end_task(self, task: Task, batches: Sequence[Batch], model: Model) -> None:
        """Called when `task` ends, or when a boundary is declared.

        Args:
            task: The task.
            batches: Examples that the world has shown in the task, each once, in random order.
                Those of a data set are read from it whenever a batch is asked for.
            model: The model after the task's last update. Count updates that are made here, and
                examples that they use, in `model.tally`.
        """

    def view(self, task: Task, model: Model) -> AbstractContextManager[None]:
        """Return a context manager; inside it the network is set up to evaluate `task`.

        It may, for example, select the task's mask or adapter.
        """
        return nullcontext()

    def state_dict(self) -> dict[str, Any]:
        """Return copies of the attributes named in `state`.

        A resumed run needs them in addition to the network and the optimizer. The state holds only
        tensors and plain Python, so that `torch.load` reads it with weights_only.
        """
        return {
            name: without_arrays(value)
            for name, value in packed(self, declared(type(self))).items()
        }

    def load_state_dict(self, state: Mapping[str, Any], model: Model) -> None:
        """Restore a saved state. The strategy must be attached to `model` first.

        If the strategy had added weights to the network, they are added again. Load the states of
        the network and the optimizer afterwards, since they contain the values.
        """
        unpack_into(self, {name: with_arrays(value) for name, value in state.items()})
        move_state(self, model.device)
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
        if strategy.comes_last and i < len(strategies) - 1:
            raise ValueError(
                f"{strategy.name} must come last in the list of strategies; it is number {i + 1}"
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


@contextmanager
def viewing(strategies: Sequence[Strategy], task: Task, model: Model) -> Iterator[None]:
    """Set the network up to evaluate `task`: open every strategy's `view`, the first outermost."""
    with ExitStack() as views:
        for strategy in strategies:
            views.enter_context(strategy.view(task, model))
        yield


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
        ValueError: If the states belong to other strategies; nothing has changed then. Also if one
            state does not fit its strategy; the strategies before it have been restored then.
    """
    keyed = _keyed(strategies)
    if set(keyed) != set(states):
        raise ValueError(
            f"the state belongs to the strategies {', '.join(states) or 'none'}; attach them "
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
    """Raise ValueError unless `value` is finite and in [low, high]."""
    if not low <= value <= high or value == float("inf"):
        allowed = f"finite and {low} or more" if high == float("inf") else f"from {low} to {high}"
        raise ValueError(f"{name} is {value}; it must be {allowed}")


def check_choice(name: str, value: str, allowed: Iterable[str]) -> None:
    """Raise ValueError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; choose one of {', '.join(allowed)}")
