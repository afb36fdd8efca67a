"""Every setting is explained where it is defined, for --help and for readers alike."""

import inspect
import re
from collections.abc import Callable
from typing import Any

import docstring_parser
import pytest

from everloop.loop import STRATEGIES, Training
from everloop.scenarios import SCENARIOS
from everloop.scenarios.advise import Situation
from everloop.scenarios.help import first_line
from everloop.scenarios.reproduce import Reproduce
from everloop.scenarios.settings import docs_of

EXPLAINED = {
    **STRATEGIES,
    **SCENARIOS,
    "training": Training,
    "advise": Situation,
    "reproduce": Reproduce,
}


def descriptions(cls: type) -> dict[str, str]:
    """Parameter -> its description in the nearest class of the MRO whose docstring has one."""
    found: dict[str, str] = {}
    for base in cls.__mro__:
        for parameter in docstring_parser.parse(vars(base).get("__doc__") or "").params:
            found.setdefault(parameter.arg_name, " ".join((parameter.description or "").split()))
    return found


def first_sentence(text: str) -> str:
    return re.split(r"(?<=\.)\s", text)[0]


@pytest.mark.parametrize("name", EXPLAINED)
def test_exactly_the_parameters_are_described(name: str) -> None:
    what = EXPLAINED[name]
    assert set(descriptions(what)) == set(inspect.signature(what).parameters)


@pytest.mark.parametrize("name", EXPLAINED)
def test_the_first_sentence_of_a_description_stands_alone(name: str) -> None:
    for setting, text in descriptions(EXPLAINED[name]).items():
        sentence = first_sentence(text)
        assert 10 <= len(sentence) <= 100, (setting, sentence)
        assert re.match(r"[A-Z0-9]", sentence), (setting, sentence)
        assert not sentence.startswith("Of "), (setting, sentence)
        assert not sentence.endswith(("al.", "e.g.", "i.e.")), (setting, sentence)
        assert text.endswith("."), (setting, text)


@pytest.mark.parametrize("name", EXPLAINED)
def test_help_shows_the_nearest_description(name: str) -> None:
    what: Callable[..., Any] = EXPLAINED[name]
    assert dict(docs_of(what)) == descriptions(EXPLAINED[name])


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_is_explained_in_one_line(name: str) -> None:
    line = first_line(STRATEGIES[name])
    assert 20 < len(line) <= 75
    assert line.endswith(".")


@pytest.mark.parametrize("name", EXPLAINED)
def test_a_class_says_what_it_is_in_its_first_line(name: str) -> None:
    line = (EXPLAINED[name].__doc__ or "").splitlines()[0]
    assert re.match(r"[A-Z]", line), line
    assert line.endswith("."), line
    assert " <- " not in line, line
    assert " += " not in line, line
