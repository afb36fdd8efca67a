"""Ready-made experiments and the command line."""

from everloop.scenarios.experiment import Experiment
from everloop.scenarios.scenario import Scenario
from everloop.scenarios.split_digits import SplitDigits
from everloop.scenarios.switching_plant import SwitchingPlant

SCENARIOS: dict[str, type[Scenario]] = {scenario.name: scenario for scenario in (SwitchingPlant, SplitDigits)}
"""Names on the command line. Add your own to run it by name."""

__all__ = ["SCENARIOS", "Experiment", "Scenario", "SplitDigits", "SwitchingPlant"]
