"""Learners, strategies, replay memories, callbacks, metrics and the loop that joins them.

Nothing here imports `everloop.envs` or `everloop.agents`: worlds and networks are known by their
protocols only. Stable-Baselines3, TensorBoard and matplotlib are imported at their first use.
"""

from typing import TYPE_CHECKING, Any

from everloop.contract import World
from everloop.loop.batch import Batch
from everloop.loop.callbacks import Divergence
from everloop.loop.callbacks.tensorboard import TensorBoardLogger
from everloop.loop.evaluate import mean_return, scores
from everloop.loop.importance.fisher import diagonal_fisher
from everloop.loop.learners.attached import Attached, attach
from everloop.loop.learners.learner import Learner
from everloop.loop.learners.nested import NestedOptimizer, levels_by_depth
from everloop.loop.learners.supervised import SupervisedLearner
from everloop.loop.learners.training import Training
from everloop.loop.learners.update import Updater
from everloop.loop.likelihood import (
    Categorical,
    Gaussian,
    Likelihood,
    SquashedGaussian,
    TokenCategorical,
    likelihood_for,
)
from everloop.loop.memory import MEMORIES, Memory, Reservoir, herding
from everloop.loop.model import Model
from everloop.loop.results.figures import learning_curves_figure, score_matrix_figure
from everloop.loop.results.result import Evaluation, Result
from everloop.loop.run import Callback, Plan, Run
from everloop.loop.strategies import (
    AGEM,
    CLEAR,
    DER,
    ERACE,
    EWC,
    GEM,
    HAT,
    L2,
    MAML,
    MAS,
    MIR,
    SI,
    STRATEGIES,
    ContinualBackprop,
    DERPlusPlus,
    GDumb,
    Growth,
    ICaRL,
    KroneckerEWC,
    L2Init,
    LaMAML,
    LoRA,
    LwF,
    PackNet,
    Progressive,
    Replay,
    Reptile,
    RWalk,
    ShrinkAndPerturb,
    Strategy,
    Traits,
)
from everloop.loop.world import NotFiniteError

if TYPE_CHECKING:
    from everloop.loop.sb3.off_policy import DQNLearner, SACLearner
    from everloop.loop.sb3.on_policy import SB3Learner
    from everloop.loop.sb3.vec_env import WorldVecEnv

_LAZY = {
    "DQNLearner": "everloop.loop.sb3.off_policy",
    "SACLearner": "everloop.loop.sb3.off_policy",
    "SB3Learner": "everloop.loop.sb3.on_policy",
    "WorldVecEnv": "everloop.loop.sb3.vec_env",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "AGEM",
    "CLEAR",
    "DER",
    "ERACE",
    "EWC",
    "GEM",
    "HAT",
    "L2",
    "MAML",
    "MAS",
    "MEMORIES",
    "MIR",
    "SI",
    "STRATEGIES",
    "Attached",
    "Batch",
    "Callback",
    "Categorical",
    "ContinualBackprop",
    "DERPlusPlus",
    "DQNLearner",
    "Divergence",
    "Evaluation",
    "GDumb",
    "Gaussian",
    "Growth",
    "ICaRL",
    "KroneckerEWC",
    "L2Init",
    "LaMAML",
    "Learner",
    "Likelihood",
    "LoRA",
    "LwF",
    "Memory",
    "Model",
    "NestedOptimizer",
    "NotFiniteError",
    "PackNet",
    "Plan",
    "Progressive",
    "RWalk",
    "Replay",
    "Reptile",
    "Reservoir",
    "Result",
    "Run",
    "SACLearner",
    "SB3Learner",
    "ShrinkAndPerturb",
    "SquashedGaussian",
    "Strategy",
    "SupervisedLearner",
    "TensorBoardLogger",
    "TokenCategorical",
    "Training",
    "Traits",
    "Updater",
    "World",
    "WorldVecEnv",
    "attach",
    "diagonal_fisher",
    "herding",
    "learning_curves_figure",
    "levels_by_depth",
    "likelihood_for",
    "mean_return",
    "score_matrix_figure",
    "scores",
]
