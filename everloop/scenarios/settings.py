"""Settings: read from flags and YAML, checked against the parameters of a class, and written.

A setting has a dotted key, such as `training.learning_rate` or `ewc.strength`. Its flag is `--KEY
VALUE`; in YAML the parts before the last dot are mappings. Everything on the command line goes
through this module.
"""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import yaml
from docstring_parser import ParseError
from docstring_parser import parse as parse_docstring
from jsonargparse import ArgumentError, ArgumentParser

from everloop.scenarios.names import Factory, did_you_mean

CLASS = "class"
"""The key that holds a factory's path in its YAML mapping."""
MEANT = {"lr": "learning_rate", "epochs": "steps", "steps": "iterations"}
"""Names that users know from elsewhere -> the name that they may mean."""


@dataclass(frozen=True)
class Setting:
    """A setting.

    Args:
        key: Dotted name.
        kind: Type of the value.
        default: Value if none is given; MISSING if it is required.
        help: Meaning of the setting.
    """

    key: str
    kind: Any
    default: Any
    help: str


Schema = dict[str, Setting]
Given = dict[str, Any]


def schema_of(
    what: Callable[..., Any],
    prefix: str = "",
    skip: Collection[str] = (),
    defaults: Mapping[str, Any] | None = None,
) -> Schema:
    """Return the settings of a class or function by key, from its signature.

    A parameter that is a dataclass becomes several settings with dotted keys.

    Args:
        what: The class or function.
        prefix: Prefix of all keys, dot included.
        skip: Parameters to leave out.
        defaults: Parameter -> default that replaces the one in the signature.
    """
    hints, docs, found = _hints(what), docs_of(what), Schema()
    for name, parameter in inspect.signature(what).parameters.items():
        if name in skip or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        kind = hints.get(name, Any)
        default = (defaults or {}).get(name, _default(what, name, parameter))
        if inspect.isclass(kind) and is_dataclass(kind) and kind is not Factory:
            inner = (
                {}
                if default is MISSING
                else {field.name: getattr(default, field.name) for field in fields(default)}
            )
            found |= schema_of(kind, f"{prefix}{name}.", defaults=inner)
        else:
            found[f"{prefix}{name}"] = Setting(f"{prefix}{name}", kind, default, docs.get(name, ""))
    return found


def _hints(what: Callable[..., Any]) -> dict[str, Any]:
    """Return parameter -> type; empty if the types can't be resolved."""
    try:
        return get_type_hints(
            what if not inspect.isclass(what) or is_dataclass(what) else what.__init__
        )
    except (NameError, TypeError):
        return {}


def _default(what: Callable[..., Any], name: str, parameter: inspect.Parameter) -> Any:
    made: dict[str, Field[Any]] = (
        {field.name: field for field in fields(what)} if is_dataclass(what) else {}
    )
    factory: Any = made[name].default_factory if name in made else MISSING
    if factory is not MISSING:
        return factory()
    return MISSING if parameter.default is parameter.empty else parameter.default


@lru_cache(maxsize=256)
def docs_of(what: Callable[..., Any]) -> Mapping[str, str]:
    """Return parameter -> description from the docstrings of a class and its parents.

    If several classes describe a parameter, the nearest one counts.
    """
    found: dict[str, str] = {}
    for cls in reversed(inspect.getmro(what) if inspect.isclass(what) else (what,)):
        try:
            parsed = parse_docstring(cls.__dict__.get("__doc__") or "").params
        except ParseError:  # a user's class may have any docstring
            continue
        found |= {
            parameter.arg_name: " ".join((parameter.description or "").split())
            for parameter in parsed
        }
    return found


def read_words(words: Sequence[str], flags: Collection[str] = ()) -> tuple[list[str], Given]:
    """Return the positional words and the given settings of a command line.

    Settings are `--key value`, `--key=value`, or `--flag` alone, which means True.

    Args:
        words: The words of the command line.
        flags: Keys that never take the next word as their value.
    """
    positional: list[str] = []
    given = Given()
    i = 0
    while i < len(words):
        word, i = words[i], i + 1
        if not word.startswith("--"):
            positional.append(word)
            continue
        key, equals, value = word[2:].partition("=")
        key = key.replace("-", "_")
        if not equals:
            has_value = key not in flags and i < len(words) and not words[i].startswith("--")
            given[key], i = (words[i], i + 1) if has_value else (True, i)
        else:
            given[key] = value
    return positional, given


def check_values(flags: Given, schema: Schema) -> None:
    """Raise ValueError if a flag has no value but needs one."""
    for key, value in flags.items():
        if (
            value is True
            and key in schema
            and not {bool, Any} & set(_alternatives(schema[key].kind))
        ):
            raise ValueError(f"{key} has no value; it must be {possible(schema[key].kind)}")


def read_yaml(file: str) -> Given:
    """Return the settings in a YAML file by dotted key.

    Raises:
        ValueError: In one line, if the file can't be read or contains something else.
    """
    try:
        content = yaml.safe_load(Path(file).read_text())
    except FileNotFoundError:
        raise ValueError(f"{file}: no such file") from None
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{file} can't be read: {error}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is not YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return Given()
    if not isinstance(content, dict):
        raise ValueError(
            f"{file} contains {_brief(content)}; it must contain settings, one `key: value` a line"
        )
    return flat(content)


def flat(content: Mapping[Any, Any], prefix: str = "") -> Given:
    """Return nested mappings as dotted keys; the path of a factory gets the factory's own key."""
    found = Given()
    for name, value in content.items():
        key = f"{prefix}{name}".replace("-", "_")
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{key}.")
        else:
            found[key.removesuffix(f".{CLASS}")] = value
    return found


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return dotted keys as nested mappings, with values that YAML can hold."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        *path, last = key.split(".")
        place = found
        for part in path:
            if not isinstance(place.get(part, {}), dict):  # a factory whose path came first
                place[part] = {CLASS: place[part]}
            place = place.setdefault(part, {})
        place[last] = plain(value)
    return found


def plain(value: Any) -> Any:
    """Return `value` as YAML and JSON can hold it.

    Paths become text, NumPy numbers become Python numbers, and members of enums their names.
    """
    if isinstance(value, enum.Enum):
        return value.name
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Factory):
        return (
            {CLASS: value.path, **{name: plain(inner) for name, inner in value.settings.items()}}
            if value.settings
            else value.path
        )
    if is_dataclass(value) and not isinstance(value, type):
        return {name: plain(inner) for name, inner in asdict(value).items()}
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, set | frozenset):
        return sorted(plain(inner) for inner in value)
    return str(value) if isinstance(value, Path) else repr(value)


def with_files(given: Given, schema: Schema) -> Given:
    """Return `given` with the content of files that stand for a group of settings.

    An example is `--training train.yaml`. Single settings override those of the file.

    Raises:
        ValueError: If the value of a group is not the path of a YAML file, or can't be read.
    """
    found = Given()
    given = _with_mappings(given, schema)
    for key, value in given.items():
        if key in schema or not any(known.startswith(f"{key}.") for known in schema):
            continue
        if not isinstance(value, str) or not value.endswith((".yaml", ".yml")):
            raise ValueError(
                f"{key} is {_brief(value)}; it must be a mapping of settings, or a YAML file that "
                "contains one"
            )
        found |= {f"{key}.{name}": inner for name, inner in read_yaml(value).items()}
        given = {name: inner for name, inner in given.items() if name != key}
    return found | given


def _with_mappings(given: Given, schema: Schema) -> Given:
    """Return `given` with dotted keys below a setting that is a mapping, put into that mapping."""
    for key, setting in schema.items():
        if not any(get_origin(kind) is dict for kind in _alternatives(setting.kind)):
            continue
        inside = {
            name.removeprefix(f"{key}."): value
            for name, value in given.items()
            if name.startswith(f"{key}.")
        }
        if inside:
            rest = {name: x for name, x in given.items() if not name.startswith(f"{key}.")}
            given = rest | {key: nested(inside)}
    return given


def check(given: Given, schema: Schema, used: Collection[str] | None = None) -> dict[str, Any]:
    """Return the given values in the types of their settings.

    Args:
        given: Key -> value, as text or as YAML has it.
        schema: The known settings.
        used: Keys to suggest in place of an unknown one, the likeliest first; None for all.

    Raises:
        ValueError: In one line, for an unknown key or a value of another type.
    """
    values = {}
    for key, value in given.items():
        if key not in schema:
            raise ValueError(
                f"unknown setting {key!r}.{_near(key, schema, schema if used is None else used)}"
            )
        values[key] = convert(schema[key], value)
    return values


def _near(key: str, schema: Schema, used: Collection[str]) -> str:
    """Return a hint at the setting that the unknown `key` may mean.

    It is a setting of the same group, else one with the same name, else one with a similar name.
    """
    group, dot, name = key.rpartition(".")
    inside = [known.rpartition(".")[2] for known in schema if known.rpartition(".")[0] == group]
    if dot and (hint := did_you_mean(name, inside)):
        return hint.replace("mean '", f"mean '{group}{dot}")
    by_name = {known.rpartition(".")[2]: known for known in reversed(list(used))}
    for wanted in (name, MEANT.get(name)):
        if wanted in by_name:
            return f" Did you mean {by_name[wanted]!r}?"
    if dot and inside:
        return f" {group} has {', '.join(inside)}."
    return did_you_mean(key, used) or did_you_mean(key, schema) or " --help lists all settings."


def convert(setting: Setting, value: Any) -> Any:
    """Return `value` in the setting's type.

    Text is read as YAML, or as a comma-separated list if the setting is a list.

    Raises:
        ValueError: If the value has another type. The message says which values are possible.
    """
    kinds = _alternatives(setting.kind)
    listed = next((kind for kind in kinds if get_origin(kind) is list or kind is list), None)
    if (
        listed is not None
        and isinstance(value, str)
        and value not in ("null", "")
        and not value.startswith("[")
    ):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if listed in (list[str], list[list[str]]):
        value = _as_names(value)
    if listed is not None and value == "":
        value = []
    if value is None and setting.default is not None and NoneType not in kinds and Any not in kinds:
        raise ValueError(f"{setting.key} is null; it must be {possible(setting.kind)}")
    if Any in kinds:
        return yaml.safe_load(value) if isinstance(value, str) else value
    if Factory in kinds:
        if isinstance(value, str) or value is None:
            return None if value in ("null", "none") else value
        raise ValueError(f"{setting.key} is {_brief(value)}; it must be {possible(setting.kind)}")
    try:
        parsed = _typed(setting.kind).parse_object({"value": value}, defaults=False)
    except (ArgumentError, ValueError, TypeError, OverflowError, RecursionError):
        raise ValueError(
            f"{setting.key} is {_brief(value)}; it must be "
            f"{possible(setting.kind)}.{_near_choice(value, setting.kind)}"
        ) from None
    return parsed["value"]


def _as_names(value: Any) -> Any:
    """Return a list of names, or a text in brackets that is one, with whole numbers as text."""
    if isinstance(value, str) and value.startswith("["):
        try:
            # this loader makes only lists, dicts and text: "no" is a name, not False
            return yaml.load(value, yaml.BaseLoader)  # nosec B506
        except yaml.YAMLError:
            return value
    if isinstance(value, list):
        return [_as_names(part) for part in value]
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


@lru_cache(maxsize=256)
def _typed(kind: Any) -> ArgumentParser:
    """Return a parser that checks a value of the type `kind`."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=kind)
    return parser


def _alternatives(kind: Any) -> list[Any]:
    if get_origin(kind) in (Union, UnionType):
        return [inner for part in get_args(kind) for inner in _alternatives(part)]
    return [kind]


def possible(kind: Any) -> str:
    """Return in words what a value of the type `kind` can be."""
    names = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        NoneType: "null",
        Path: "a path",
        Any: "anything",
        Factory: "the name or path of a class",
    }
    several = {int: "whole numbers", float: "numbers", str: "names"}
    words = []
    for part in _alternatives(kind):
        if part in names:
            words.append(names[part])
        elif get_origin(part) is Literal:
            words.append("one of " + ", ".join(map(str, get_args(part))))
        elif part == list[list[str]]:
            words.append("lists of names, such as [[a,b],[c]]")
        elif get_origin(part) in (list, tuple, Sequence):
            inside = several.get(get_args(part)[0], "values") if get_args(part) else "values"
            words.append(f"a comma-separated list of {inside}")
        elif inspect.isclass(part) and issubclass(part, enum.Enum):
            words.append("one of " + ", ".join(part.__members__))
        else:
            words.append(getattr(part, "__name__", str(part)))
    return " or ".join(words)


def _near_choice(value: Any, kind: Any) -> str:
    choices = [
        str(choice)
        for part in _alternatives(kind)
        if get_origin(part) is Literal
        for choice in get_args(part)
    ]
    return did_you_mean(value, choices) if isinstance(value, str) else ""


def _brief(value: Any) -> str:
    """Return the value in one line of at most 60 characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
