"""Meta-training of the initial weights before a run's first task."""

from everloop.loop.pretraining.base import Pretraining
from everloop.loop.pretraining.maml import MAML
from everloop.loop.pretraining.reptile import Reptile

PRETRAINING: dict[str, type[Pretraining]] = {cls.name: cls for cls in (MAML, Reptile)}
"""Meta-training by its name on the command line, where it is listed with the strategies."""

__all__ = ["MAML", "PRETRAINING", "Pretraining", "Reptile"]
