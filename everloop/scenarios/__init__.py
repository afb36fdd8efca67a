"""Ready-made experiments and the command line."""

from everloop.scenarios.check_strategy import check_strategy
from everloop.scenarios.cifar import SplitCIFAR10, SplitCIFAR100
from everloop.scenarios.control import Control
from everloop.scenarios.experiment import Experiment
from everloop.scenarios.features import Features
from everloop.scenarios.imagenet import SplitImageNet256
from everloop.scenarios.images import ImageScenario, SplitImages
from everloop.scenarios.mnist import PermutedMNIST, RotatedMNIST, SplitMNIST
from everloop.scenarios.names import Factory
from everloop.scenarios.omniglot import SplitOmniglot
from everloop.scenarios.scenario import Scenario
from everloop.scenarios.split_digits import SplitDigits
from everloop.scenarios.stream import StreamScenario
from everloop.scenarios.switching_plant import SwitchingPlant
from everloop.scenarios.texts import (
    DomainNER,
    DomainNewsgroups,
    DomainSentiment,
    DomainText,
    TextScenario,
)

SCENARIOS: dict[str, type[Scenario]] = {
    scenario.name: scenario
    for scenario in (
        SwitchingPlant,
        Control,
        SplitDigits,
        SplitMNIST,
        PermutedMNIST,
        RotatedMNIST,
        SplitCIFAR10,
        SplitCIFAR100,
        SplitOmniglot,
        SplitImageNet256,
        DomainSentiment,
        DomainNewsgroups,
        DomainNER,
        DomainText,
        Features,
    )
}
"""Scenario classes by their names on the command line. Add your own to run it by name."""

__all__ = [
    "SCENARIOS",
    "Control",
    "DomainNER",
    "DomainNewsgroups",
    "DomainSentiment",
    "DomainText",
    "Experiment",
    "Factory",
    "Features",
    "ImageScenario",
    "PermutedMNIST",
    "RotatedMNIST",
    "Scenario",
    "SplitCIFAR10",
    "SplitCIFAR100",
    "SplitDigits",
    "SplitImageNet256",
    "SplitImages",
    "SplitMNIST",
    "SplitOmniglot",
    "StreamScenario",
    "SwitchingPlant",
    "TextScenario",
    "check_strategy",
]
