"""Strategies against forgetting, and for staying able to learn, one file each."""

from everloop.loop.strategies.agem import AGEM
from everloop.loop.strategies.base import Effect, Forward, Strategy, Traits
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
from everloop.loop.strategies.meta import MAML, Reptile
from everloop.loop.strategies.mir import MIR
from everloop.loop.strategies.packnet import PackNet
from everloop.loop.strategies.progressive import Progressive
from everloop.loop.strategies.replay import Replay
from everloop.loop.strategies.rwalk import RWalk
from everloop.loop.strategies.shrink_and_perturb import ShrinkAndPerturb
from everloop.loop.strategies.si import SI

STRATEGIES: dict[str, type[Strategy]] = {
    strategy.name: strategy
    for strategy in (
        L2,
        EWC,
        KroneckerEWC,
        SI,
        MAS,
        RWalk,
        LwF,
        Replay,
        DER,
        DERPlusPlus,
        ERACE,
        MIR,
        GDumb,
        ICaRL,
        CLEAR,
        GEM,
        AGEM,
        PackNet,
        HAT,
        LoRA,
        Progressive,
        Growth,
        Reptile,
        MAML,
        LaMAML,
        ContinualBackprop,
        L2Init,
        ShrinkAndPerturb,
    )
}
"""Names on the command line. Add your own to run it by name."""

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
    "MIR",
    "SI",
    "STRATEGIES",
    "ContinualBackprop",
    "DERPlusPlus",
    "Effect",
    "Forward",
    "GDumb",
    "Growth",
    "ICaRL",
    "KroneckerEWC",
    "L2Init",
    "LaMAML",
    "LoRA",
    "LwF",
    "PackNet",
    "Progressive",
    "RWalk",
    "Replay",
    "Reptile",
    "ShrinkAndPerturb",
    "Strategy",
    "Traits",
]
