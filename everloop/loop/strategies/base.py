"""What a strategy can do, and when."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from everloop.contract import Task
from everloop.loop.batch import Batch
from everloop.loop.state import declared, pack, unpack_into

if TYPE_CHECKING:
    from everloop.contract import NetworkOutput
    from everloop.loop.learner import Learner


@dataclass(frozen=True)
class Traits:
    """What a strategy asks for, and what it is good for: what `everloop advise` goes by.

    boundaries: it has to be told where tasks begin and end. examples: it stores examples.
    copies: how many numbers it keeps for each weight. grows: and for each task.
    task_id: it has to be told the task at test time. class_incremental: it helps where it is not told, and every task brings
    new classes. streams, control: where it works. several_passes: it is for tasks whose examples come more than once.
    network: the architecture it asks for, if not any. for_learning: it keeps the network able to learn, rather than from forgetting.
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
    for_learning: bool = False


class Strategy:
    """Small, composable, ignorant of which learner it serves. Every method defaults to nothing.

    Strategies run in the order of their list, after a step in reverse. One with strength 0 is left out, so that training is
    plain. One that draws random numbers has a generator of its own. One that keeps something for each weight keeps it by
    the weight's name, since weights may come while a task is learned.
    """

    name: ClassVar[str] = "strategy"
    """What it is called on the command line, in states and in messages; a class that says nothing has its own name."""

    traits: ClassVar[Traits] = Traits()

    state: ClassVar[tuple[str, ...]] = ()
    """Names of the attributes that make up its state, beside those of its bases (`everloop.loop.state`)."""

    replaces_loss: bool = False
    """True if this strategy replaces the task loss. At most one in a list does."""

    adds_weights: bool = False
    """True if this strategy adds weights to the network. At most one in a list does."""

    strength: float = 1.0
    """The weight of what it does; 0 is plain training."""

    @property
    def active(self) -> bool:
        """False if this strategy would change nothing: it is left out when strategies are attached."""
        return self.strength > 0

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "name" not in vars(cls):
            cls.name = cls.__name__

    def check(self, learner: Learner) -> None:
        """Before anything is learned: raises ValueError that says why, if this strategy cannot work in `learner`."""

    def begin_task(self, task: Task, learner: Learner) -> None:
        """Before the first step of `task`."""

    def observe(self, batch: Batch, learner: Learner) -> None:
        """Once for each fresh batch: memories fill here. An algorithm may learn from it several times."""

    def output_loss(self, learner: Learner, batch: Batch, output: NetworkOutput) -> Tensor | None:
        """A scalar to add to the loss of the fresh `batch`, or None; `output` is what that loss is computed from.

        What needs no forward pass beside the one that is there belongs here. Where the loss stands in an algorithm
        that is not ours, `output` holds leaves, and what flows back to them joins the algorithm's own gradient.
        """
        return None

    def recall(self, learner: Learner) -> Batch | None:
        """Stored examples to rehearse with the coming update, or None.

        Where the loop is ours they go through the network together with the fresh batch, and are recalled before it is seen; of
        several updates along one batch, before the first.
        """
        return None

    def recall_loss(self, learner: Learner, stored: Batch, output: NetworkOutput) -> Tensor:
        """A scalar to add to the loss: of the examples recalled and what the network puts out for them."""
        raise NotImplementedError(f"{type(self).__name__} recalls examples, and has no loss of them")

    def extra_loss(self, learner: Learner, batch: Batch | None) -> Tensor | None:
        """A scalar to add to the loss of `batch`, or None."""
        return None

    def wants_gradient(self, learner: Learner) -> bool:
        """Whether `edit_gradients` leaves anything of the losses' gradient; if not, learners of our own do without the backward pass."""
        return True

    def edit_gradients(self, learner: Learner, batch: Batch | None) -> None:
        """Change the parameters' `.grad` in place, after all losses and before clipping."""

    def after_step(self, learner: Learner) -> None:
        """After the optimizer's step, in the reverse order of the list: the first strategy has the last word on the weights."""

    def end_task(self, task: Task, learner: Learner, batches: Sequence[Batch]) -> None:
        """After the last step of `task`; `batches` are fresh examples of it."""

    def view(self, task: Task, learner: Learner) -> AbstractContextManager[None]:
        """A context in which the network is as it should be when `task` is evaluated."""
        return nullcontext()

    def state_dict(self) -> dict[str, Any]:
        """The attributes named in `state`: all that a resumed run needs beside the network and the optimizer."""
        return {name: pack(getattr(self, name)) for name in declared(type(self))}

    def load_state_dict(self, state: Mapping[str, Any], learner: Learner) -> None:
        """Take over what `state_dict` gave, after the strategy was attached to `learner`.

        The network gets the parts back that the strategy had added. Their values come with the states of the network
        and the optimizer, which are to be loaded after this.
        """
        unpack_into(self, state)
        self._restored(learner)

    def _restored(self, learner: Learner) -> None:
        """After loading: make again what follows from the state."""


def states_of(strategies: Sequence[Strategy]) -> dict[str, dict[str, Any]]:
    """The state of each strategy, by its name."""
    return {key: strategy.state_dict() for key, strategy in _keyed(strategies).items()}


def load_states(strategies: Sequence[Strategy], states: Mapping[str, Mapping[str, Any]], learner: Learner) -> None:
    """Give each strategy, attached to `learner`, the state of its name.

    Raises:
        ValueError: For the states of other strategies; nothing has changed then.
    """
    keyed = _keyed(strategies)
    if set(keyed) != set(states):
        raise ValueError(f"the state is of the strategies {', '.join(states) or 'none'}; here are {', '.join(keyed) or 'none'}")
    for key, strategy in keyed.items():
        strategy.load_state_dict(states[key], learner)


def _keyed(strategies: Sequence[Strategy]) -> dict[str, Strategy]:
    """By name; of several with the same name the later ones are numbered."""
    names = [type(strategy).name for strategy in strategies]
    numbers = [names[: i + 1].count(name) for i, name in enumerate(names)]
    return {name if k == 1 else f"{name}-{k}": s for name, k, s in zip(names, numbers, strategies, strict=True)}


def check_strength(strength: float, name: str = "strength") -> float:
    """`strength`, or ValueError if it is negative or not finite."""
    check_range(name, strength, 0)
    return strength


def check_first(strategy: Strategy, name: str, learner: Learner) -> None:
    """Raise ValueError unless `strategy` is the first one: it changes weights at a task's end, which the others then build on."""
    if learner.strategies[0] is not strategy:
        raise ValueError(f"{name} is number {list(learner.strategies).index(strategy) + 1} of the strategies, allowed: the first")


def check_may_grow(learner: Learner, strategy: str) -> None:
    """Raise ValueError if the network must keep the weights it has."""
    if not learner.may_grow:
        raise ValueError(f"{strategy} adds weights, which the algorithm's target network would not have, allowed here: replay, ewc")


def check_range(name: str, value: float, low: float, high: float = float("inf")) -> None:
    """Raise ValueError unless `value` is in [low, high]."""
    if not low <= value <= high or value == float("inf"):
        raise ValueError(f"{name} is {value}, allowed: {f'{low} or more' if high == float('inf') else f'{low} to {high}'}")


def check_choice(name: str, value: str, allowed: Iterable[str]) -> None:
    """Raise ValueError unless `value` is among those allowed."""
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}, allowed: {', '.join(allowed)}")
