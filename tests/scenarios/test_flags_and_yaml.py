"""Flags and YAML set the same values, and every mistake in them is one line."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from everloop.scenarios.names import Factory
from everloop.scenarios.settings import (
    check,
    convert,
    flat,
    nested,
    plain,
    read_words,
    read_yaml,
    schema_of,
    with_files,
)


class Size(enum.Enum):
    small = 1
    large = 2


@dataclass
class Inner:
    """Inside.

    Args:
        rate: How fast.
    """

    rate: float = 0.5
    kind: Literal["fast", "slow"] = "fast"


@dataclass
class Parent:
    """Above.

    Args:
        count: How many.
        note: Of the parent.
    """

    count: int = 3
    note: str | None = None


@dataclass
class Child(Parent):
    """Below.

    Args:
        note: Of the child.
        size: How large.
    """

    size: Size = Size.small
    numbers: list[int] | None = None
    words: list[str] = field(default_factory=lambda: ["a"])
    inner: Inner = field(default_factory=lambda: Inner(rate=0.25))
    on: bool = False
    made: Factory | None = None
    groups: list[list[str]] | None = None


SCHEMA = schema_of(Child)


def test_the_settings_of_a_class_have_their_types_defaults_and_meanings() -> None:
    assert list(SCHEMA) == [
        "count",
        "note",
        "size",
        "numbers",
        "words",
        "inner.rate",
        "inner.kind",
        "on",
        "made",
        "groups",
    ]
    assert [SCHEMA[key].default for key in ("count", "note", "size", "words", "inner.rate")] == [
        3,
        None,
        Size.small,
        ["a"],
        0.25,
    ]
    assert {key: SCHEMA[key].help for key in ("count", "note", "size", "inner.rate", "on")} == {
        "count": "How many.",
        "note": "Of the child.",
        "size": "How large.",
        "inner.rate": "How fast.",
        "on": "",
    }
    assert set(schema_of(Child, "x.", skip={"inner", "made"}, defaults={"count": 9})) == {
        f"x.{n}" for n in ("count", "note", "size", "numbers", "words", "on", "groups")
    }
    assert schema_of(Child, "x.", defaults={"count": 9})["x.count"].default == 9


@pytest.mark.parametrize(
    ("words", "positional", "found"),
    [
        ("run x --a 1 --b=2 --c", ["run", "x"], {"a": "1", "b": "2", "c": True}),
        ("--quiet x --a-b.c-d -1", ["x"], {"quiet": True, "a_b.c_d": "-1"}),
        ("--a 1 --a 2", [], {"a": "2"}),
        ("--a= --b", [], {"a": "", "b": True}),
        ("--quiet=false x", ["x"], {"quiet": "false"}),
        ("--a --b 1", [], {"a": True, "b": "1"}),
    ],
)
def test_words_become_settings(words: str, positional: list[str], found: dict[str, Any]) -> None:
    assert read_words(words.split(" "), ["quiet"]) == (positional, found)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("count", "7", 7),
        ("count", 7, 7),
        ("note", "null", None),
        ("note", "text", "text"),
        ("size", "large", Size.large),
        ("numbers", "1,2", [1, 2]),
        ("numbers", "[1, 2]", [1, 2]),
        ("numbers", [1, 2], [1, 2]),
        ("numbers", "null", None),
        ("words", "a,b", ["a", "b"]),
        ("words", [1, "b"], ["1", "b"]),
        ("words", "", []),
        ("words", "[0, no]", ["0", "no"]),
        ("groups", "[[0,no],[b c]]", [["0", "no"], ["b c"]]),
        ("groups", [[0, "a"], []], [["0", "a"], []]),
        ("groups", None, None),
        ("inner.rate", "1e-3", 1e-3),
        ("inner.rate", 1, 1.0),
        ("inner.kind", "slow", "slow"),
        ("on", "true", True),
        ("on", False, False),
        ("made", "torch.optim.SGD", "torch.optim.SGD"),
        ("made", "none", None),
    ],
)
def test_values_come_in_their_types_from_flags_and_from_yaml(
    key: str, value: Any, expected: Any
) -> None:
    found = convert(SCHEMA[key], value)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("count", "many", "count is 'many'; it must be a whole number"),
        ("count", True, "count is True; it must be a whole number"),
        ("count", 3.5, "count is 3.5; it must be a whole number"),
        ("count", None, "count is null; it must be a whole number"),
        ("note", 3, "note is 3; it must be text or null"),
        ("size", "huge", "size is 'huge'; it must be one of small, large"),
        (
            "numbers",
            "a,b",
            "numbers is ['a', 'b']; it must be a comma-separated list of whole numbers",
        ),
        (
            "groups",
            "[[0],1]",
            "groups is [['0'], '1']; it must be lists of names, such as [[a,b],[c]] or null",
        ),
        ("groups", "[[0", "groups is '[[0'; it must be lists of names"),
        ("groups", "0,1", "groups is ['0', '1']; it must be lists of names"),
        ("inner.rate", "fast", "inner.rate is 'fast'; it must be a number"),
        (
            "inner.kind",
            "fsat",
            "inner.kind is 'fsat'; it must be one of fast, slow. Did you mean 'fast'?",
        ),
        ("on", "perhaps", "on is 'perhaps'; it must be true or false"),
        ("on", 1, "on is 1; it must be true or false"),
        ("made", 3, "made is 3; it must be the name or path of a class or null"),
        ("count", "x" * 500, "count is 'xxx"),
        ("count", "a\nb", "count is 'a\\nb'"),
    ],
)
def test_the_error_of_a_wrong_type_names_key_value_and_possible_values(
    key: str, value: Any, said: str
) -> None:
    with pytest.raises(ValueError, match="it must be") as refused:
        check({key: value}, SCHEMA)
    assert str(refused.value).startswith(said)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("cuont", "unknown setting 'cuont'. Did you mean 'count'?"),
        ("inner.raet", "unknown setting 'inner.raet'. Did you mean 'inner.rate'?"),
        ("inner.zzz", "unknown setting 'inner.zzz'. inner has rate, kind."),
        ("zzz", "unknown setting 'zzz'. --help lists all settings."),
        ("rate", "unknown setting 'rate'. Did you mean 'inner.rate'?"),
    ],
)
def test_an_unknown_key_is_one_line_with_the_nearest(key: str, said: str) -> None:
    with pytest.raises(ValueError, match="unknown") as refused:
        check({key: 1}, SCHEMA)
    assert str(refused.value) == said


def test_single_settings_override_the_file_of_their_group(tmp_path: Path) -> None:
    file = tmp_path / "inner.yaml"
    file.write_text("rate: 0.125\nkind: slow\n")
    for given_ in (
        {"inner": str(file), "inner.kind": "fast"},
        {"inner.kind": "fast", "inner": str(file)},
    ):
        assert with_files(given_, SCHEMA) == {"inner.rate": 0.125, "inner.kind": "fast"}
    with pytest.raises(
        ValueError,
        match=r"^inner is 5; it must be a mapping of settings, or a YAML file that contains one$",
    ):
        with_files({"inner": 5}, SCHEMA)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[1, 2]", "contains [1, 2]; it must contain settings"),
        ("a: [1", "is not YAML: "),
        ("just text", "contains 'just text'"),
        ("a: \x00", "is not YAML"),
    ],
)
def test_a_file_without_settings_is_an_error_of_one_line(
    content: str, said: str, tmp_path: Path
) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(content)
    with pytest.raises(ValueError, match=r"x\.yaml") as refused:
        read_yaml(str(file))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match=r"missing\.yaml: no such file$"):
        read_yaml(str(tmp_path / "missing.yaml"))
    with pytest.raises(ValueError, match="can't be read"):
        read_yaml(str(tmp_path))


def test_an_empty_file_holds_no_settings(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("# nothing\n")
    assert read_yaml(str(tmp_path / "x.yaml")) == {}


PLAIN_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(),
    st.lists(st.integers(), max_size=3),
)
KEYS = st.from_regex(r"[a-z_]{1,6}(\.[a-z_]{1,6}){0,2}", fullmatch=True).filter(
    lambda key: "class" not in key.split(".")
)


@given(values=st.dictionaries(KEYS, PLAIN_VALUES, max_size=6))
def test_nested_settings_are_read_back_as_flat_ones(values: dict[str, Any]) -> None:
    """Except if a key is a prefix of another one, which only factories have."""
    if any(other.startswith(f"{key}.") for key in values for other in values):
        return
    assert flat(yaml.safe_load(yaml.safe_dump(nested(values)))) == values


def test_a_factory_is_written_with_its_class_and_read_again() -> None:
    written = nested({"optimizer": Factory("torch.optim.SGD", {"momentum": 0.9})})
    assert written == {"optimizer": {"class": "torch.optim.SGD", "momentum": 0.9}}
    assert flat(written) == {"optimizer": "torch.optim.SGD", "optimizer.momentum": 0.9}
    assert nested({"optimizer": Factory("adam")}) == {"optimizer": "adam"}


def test_every_type_of_setting_is_written_as_yaml() -> None:
    values = {
        "a": Size.large,
        "b": Path("x/y"),
        "c": np.float32(0.5),
        "d": np.int64(3),
        "e": (1, 2),
        "f": Inner(),
        "g": {2, 1},
        "h": {1: np.bool_(True)},
    }
    expected = {
        "a": "large",
        "b": "x/y",
        "c": 0.5,
        "d": 3,
        "e": [1, 2],
        "f": {"rate": 0.5, "kind": "fast"},
        "g": [1, 2],
        "h": {"1": True},
    }
    assert plain(values) == expected
    assert yaml.safe_load(yaml.safe_dump(plain(values))) == expected


@dataclass
class Mapped:
    """With a mapping.

    Args:
        options: Names and values.
        size: A number.
    """

    options: dict[str, Any] = field(default_factory=dict)
    size: int = 0


def test_a_mapping_is_read_whole_or_entry_by_entry(tmp_path: Path) -> None:
    schema = schema_of(Mapped)
    wanted = {"n_steps": 64, "inside": {"a": 1}}
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump({"options": wanted, "size": 2}))
    for asked in (
        read_yaml(str(file)),
        {"options": '{"n_steps": 64, "inside": {"a": 1}}', "size": "2"},
        {"options.n_steps": 64, "options.inside.a": 1, "size": "2"},
    ):
        assert check(with_files(asked, schema), schema) == {"options": wanted, "size": 2}
