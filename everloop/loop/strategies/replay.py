"""Experience replay of stored examples; in control, policy distillation."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from everloop.loop.batch import Batch
from everloop.loop.strategies.base import Traits
from everloop.loop.strategies.rehearsal import Rehearsal

if TYPE_CHECKING:
    from everloop.loop.learner import Learner


class Replay(Rehearsal):
    """loss += strength * mean loss over stored examples.

    In streams the stored target is the label: experience replay (Chaudhry et al. 2019, "On tiny episodic
    memories"). In control it is what the policy itself put out at its task's end, and the loss is
    KL(stored || now): policy distillation on stored sequences (Rusu et al. 2016, eq. 3; "behavioural
    cloning" in Continual World, Wolczyk et al. 2021). The learner knows which, by its `targets` and `loss`.

    Memory: capacity examples, images as uint8.

    Args:
        strength: The weight of the replay loss, 0 or more; 0 is plain training.
        capacity: How many examples are stored in all, 1 or more.
        batch_size: How many stored examples are replayed with each update, 1 or more.
        memory: The rule that says which examples are stored: reservoir, class-balanced, ring, uncertain or
            informative.
        current: Replay examples of the current task too, not only of ended ones. Needed where task boundaries
            are unknown.
        seed: Of its own random draws.
    """

    traits: ClassVar[Traits] = Traits(boundaries=False, examples=True, class_incremental=True)

    def __init__(
        self,
        strength: float = 1.0,
        capacity: int = 1000,
        batch_size: int = 64,
        memory: str = "reservoir",
        current: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(strength, capacity, batch_size, memory, seed)
        self.current = current

    def recall(self, learner: Learner) -> Batch | None:
        return self.draw(learner, None if self.current else self.past) if self.strength else None
