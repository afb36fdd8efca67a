"""Meta-training of initial weights, before a run's first task."""

from everloop.loop.pretraining.base import Pretraining
from everloop.loop.pretraining.maml import MAML
from everloop.loop.pretraining.reptile import Reptile

PRETRAINING: dict[str, type[Pretraining]] = {cls.name: cls for cls in (MAML, Reptile)}
"""Names on the command line, where they stand among the strategies."""

__all__ = ["MAML", "PRETRAINING", "Pretraining", "Reptile"]
