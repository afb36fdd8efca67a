"""Every setting is explained where it is defined, for --help and for readers alike."""

import re
from collections.abc import Callable
from typing import Any

import pytest

from everloop.loop import STRATEGIES, Training
from everloop.scenarios import SCENARIOS
from everloop.scenarios.advise import Situation
from everloop.scenarios.help import first_line
from everloop.scenarios.reproduce import Reproduce
from everloop.scenarios.settings import docs_of, schema_of

EXPLAINED = {**STRATEGIES, **SCENARIOS, "training": Training, "advise": Situation, "reproduce": Reproduce}


@pytest.mark.parametrize("name", EXPLAINED)
def test_every_setting_has_a_description_and_no_description_is_of_anything_else(name: str) -> None:
    what: Callable[..., Any] = EXPLAINED[name]
    documented, settings = docs_of(what), {key.partition(".")[0] for key in schema_of(what)}
    assert set(documented) == settings
    for setting, text in documented.items():
        first = re.split(r"(?<=[.;:])\s", text)[0]
        assert 3 < len(first) <= 120, (setting, first)
        assert text[-1] in ".)", (setting, text)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_is_explained_in_one_line_of_80_columns(name: str) -> None:
    line = first_line(STRATEGIES[name])
    assert 20 < len(line) <= 76
    assert line.endswith(".")
