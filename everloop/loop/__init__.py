"""Learners, strategies, replay memories, callbacks, metrics and the loop that joins them.

Nothing here imports `everloop.envs` or `everloop.agents`: worlds and networks are known by their
protocols only. Stable-Baselines3, TensorBoard and matplotlib are imported at their first use.
"""

from typing import TYPE_CHECKING, Any

from everloop.contract import World
from everloop.loop.batch import Batch
from everloop.loop.callbacks import Divergence
from everloop.loop.callbacks.checkpoints import Checkpoints
from everloop.loop.callbacks.early_stopping import EarlyStopping
from everloop.loop.callbacks.tensorboard import TensorBoardLogger
from everloop.loop.checkpoint import Checkpoint, CheckpointError
from everloop.loop.evaluate import mean_return, scores
from everloop.loop.guard import Guard
from everloop.loop.importance.fisher import diagonal_fisher
from everloop.loop.learners.attached import Attached, attach
from everloop.loop.learners.learner import Learner
from everloop.loop.learners.nested import NestedOptimizer, levels_by_depth
from everloop.loop.learners.supervised import SupervisedLearner
from everloop.loop.learners.training import Training
from everloop.loop.learners.update import Updater
from everloop.loop.likelihood import (
    Bernoulli,
    Categorical,
    Gaussian,
    Likelihood,
    MultiCategorical,
    SquashedGaussian,
    TokenCategorical,
    UnitGaussian,
    likelihood_for,
)
from everloop.loop.memory import MEMORIES, Memory, Reservoir, herding
from everloop.loop.model import Model
from everloop.loop.plan import Plan
from everloop.loop.pretraining import MAML, PRETRAINING, Pretraining, Reptile
from everloop.loop.results.figures import learning_curves_figure, score_matrix_figure
from everloop.loop.results.result import Evaluation, Result, Rollback
from everloop.loop.run import Callback, Run
from everloop.loop.strategies import STRATEGIES, Effect, Forward, Strategy, Traits
from everloop.loop.strategies.agem import AGEM
from everloop.loop.strategies.clear import CLEAR
from everloop.loop.strategies.continual_backprop import ContinualBackprop
from everloop.loop.strategies.der import DER, DERPlusPlus
from everloop.loop.strategies.er_ace import ERACE
from everloop.loop.strategies.ewc import EWC
from everloop.loop.strategies.ewc_kfac import KroneckerEWC
from everloop.loop.strategies.gdumb import GDumb
from everloop.loop.strategies.gem import GEM
from everloop.loop.strategies.growth import Growth
from everloop.loop.strategies.hat import HAT
from everloop.loop.strategies.icarl import ICaRL
from everloop.loop.strategies.l2 import L2
from everloop.loop.strategies.l2_init import L2Init
from everloop.loop.strategies.la_maml import LaMAML
from everloop.loop.strategies.lora import LoRA
from everloop.loop.strategies.lwf import LwF
from everloop.loop.strategies.mas import MAS
from everloop.loop.strategies.mir import MIR
from everloop.loop.strategies.packnet import PackNet
from everloop.loop.strategies.progressive import Progressive
from everloop.loop.strategies.replay import Replay
from everloop.loop.strategies.rwalk import RWalk
from everloop.loop.strategies.shrink_and_perturb import ShrinkAndPerturb
from everloop.loop.strategies.si import SI
from everloop.loop.world import Diverged, NotFiniteError

if TYPE_CHECKING:
    from everloop.loop.sb3.attached import attach_sb3
    from everloop.loop.sb3.off_policy import DQNLearner, SACLearner
    from everloop.loop.sb3.on_policy import SB3Learner
    from everloop.loop.sb3.vec_env import WorldVecEnv

_LAZY = {
    "attach_sb3": "everloop.loop.sb3.attached",
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
    "PRETRAINING",
    "SI",
    "STRATEGIES",
    "Attached",
    "Batch",
    "Bernoulli",
    "Callback",
    "Categorical",
    "Checkpoint",
    "CheckpointError",
    "Checkpoints",
    "ContinualBackprop",
    "DERPlusPlus",
    "DQNLearner",
    "Diverged",
    "Divergence",
    "EarlyStopping",
    "Effect",
    "Evaluation",
    "Forward",
    "GDumb",
    "Gaussian",
    "Growth",
    "Guard",
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
    "MultiCategorical",
    "NestedOptimizer",
    "NotFiniteError",
    "PackNet",
    "Plan",
    "Pretraining",
    "Progressive",
    "RWalk",
    "Replay",
    "Reptile",
    "Reservoir",
    "Result",
    "Rollback",
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
    "UnitGaussian",
    "Updater",
    "World",
    "WorldVecEnv",
    "attach",
    "attach_sb3",
    "diagonal_fisher",
    "herding",
    "learning_curves_figure",
    "levels_by_depth",
    "likelihood_for",
    "mean_return",
    "score_matrix_figure",
    "scores",
]
