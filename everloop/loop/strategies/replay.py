"""Experience replay of stored examples; in control, policy distillation."""

from __future__ import annotations

from typing import ClassVar

from everloop.loop.batch import Batch
from everloop.loop.model import Model
from everloop.loop.strategies.base import Traits
from everloop.loop.strategies.parts.rehearsal import Rehearsal


class Replay(Rehearsal):
    """Replays stored examples of ended tasks with every update.

        loss += strength * mean loss over stored examples

    In streams the stored target is the label: this is experience replay (Chaudhry et al. 2019, "On
    tiny episodic memories"). In control the target is the policy's output at the end of its task,
    and the loss is KL(stored || current). This is policy distillation on stored sequences (Rusu et
    al. 2016, eq. 3), called "behavioural cloning" in Continual World (Wolczyk et al. 2021). The
    model's `targets` and `loss` decide between the two.

    Memory: `capacity` examples, with images as uint8.

    Args:
        strength: Weight of the replay loss, 0 or more; 0 is plain training.
        capacity: Number of examples stored in total, 1 or more.
        batch_size: Number of stored examples replayed with each update, 1 or more. Chaudhry et al.
            use 10, as many as there are fresh ones.
        memory: Rule for what is stored: reservoir, class-balanced, ring, uncertain or
            informative.
        current: Replay examples of the current task too, not only of ended ones. Use it where task
            boundaries are unknown.
        seed: Seed for choosing which examples are stored and replayed, 0 or more.
    """

    name = "replay"
    traits: ClassVar[Traits] = Traits(
        without_boundaries={"current": "true"},
        examples=True,
        class_incremental=True,
        rank={"control": 1, "class": 3, "other": 1},
    )

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

    def recall(self, model: Model) -> Batch | None:
        return self.draw(model, None if self.current else self.past)
