"""Settings as readable text: the output of --help, and a YAML file with comments."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import MISSING
from importlib import import_module
from typing import Any

import yaml

from everloop.scenarios.names import Factory
from everloop.scenarios.settings import Schema, Setting, plain, possible

WIDTH, INDENT = 80, 26


def help_text(
    usage: str, about: str, groups: Mapping[str, Schema | Mapping[str, str]], last: str = ""
) -> str:
    """Return the text that --help prints, wrapped to 80 columns but for `usage` and long names.

    Args:
        usage: The form of the command.
        about: What the command does.
        groups: Title -> settings, or title -> (name -> description).
        last: Last paragraph; empty for none.
    """
    blocks = [f"usage: {usage}", _wrapped(about)]
    for title, group in groups.items():
        lines = [line for name, entry in group.items() for line in _entry(name, entry)]
        blocks.append("\n".join([f"{title}:", *lines]))
    return "\n\n".join([*blocks, *([_wrapped(last)] if last else [])])


def _entry(name: str, entry: Setting | str) -> list[str]:
    if isinstance(entry, str):
        return _two_columns(name, entry)
    text = entry.help or "(no description)"
    value = "null" if entry.default is None else shown(entry.default)
    default = "" if entry.default is MISSING else f" [{value}]"
    return _two_columns(
        f"--{entry.key.replace('_', '-')}", f"{text.rstrip()} ({possible(entry.kind)}){default}"
    )


def shown(value: Any) -> str:
    """Return a value as readable text."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Factory):
        return value.path
    if isinstance(value, list | tuple):
        return ",".join(map(shown, value)) or "none"
    return str(plain(value))


def _two_columns(left: str, right: str) -> list[str]:
    lines = textwrap.wrap(right, WIDTH - INDENT, break_on_hyphens=False)
    first = f"  {left}"
    if len(first) > INDENT - 2:
        return [first, *(" " * INDENT + line for line in lines)]
    return [
        f"{first:{INDENT}}{lines[0] if lines else ''}",
        *(" " * INDENT + line for line in lines[1:]),
    ]


def _wrapped(text: str) -> str:
    return "\n".join("\n".join(textwrap.wrap(part, WIDTH)) for part in text.splitlines())


def commented_yaml(groups: Mapping[str, Schema], values: Mapping[str, Any]) -> str:
    """Return a YAML file for --config: every setting with its value, after a comment about it.

    Args:
        groups: Title -> settings.
        values: The value of every setting by its key.
    """
    lines: list[str] = []
    for title, schema in groups.items():
        lines += ["", f"# {title}"] if lines else [f"# {title}"]
        open_group = ""
        for setting in schema.values():
            group, _, name = setting.key.rpartition(".")
            if group != open_group and group:
                lines.append(f"{group}:")
            open_group, indent = group, "  " if group else ""
            comment = f"{setting.help or name} ({possible(setting.kind)})"
            lines += [
                f"{indent}# {line}"
                for line in textwrap.wrap(comment, 96 - len(indent), break_on_hyphens=False)
            ]
            lines.append(f"{indent}{name}: {_one_line(values[setting.key])}")
    return "\n".join(lines) + "\n"


def _one_line(value: Any) -> str:
    """Return a value as YAML writes it on one line."""
    text = yaml.safe_dump(
        plain(value), default_flow_style=True, sort_keys=False, width=10_000, allow_unicode=True
    )
    return text.removesuffix("...\n").strip()


def first_line(thing: Any) -> str:
    """Return the first line of the docstring of an object's module.

    Args:
        thing: An object with a module, or a path "package.module:Name".
    """
    module = thing.partition(":")[0] if isinstance(thing, str) else thing.__module__
    lines = (import_module(module).__doc__ or "").strip().splitlines()
    return lines[0] if lines else ""
