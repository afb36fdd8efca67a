"""The installed package: its tables, and version bounds that agree with both lists of versions."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import everloop

ROOT = Path(__file__).parent.parent
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT: dict[str, Any] = PYPROJECT["project"]
NOT_RUN_LOWEST = {"torch"}
"""Packages that are tested above their bound, as constraints-lowest.txt explains."""


def requirements() -> list[Requirement]:
    """Return the requirements of everloop and of its extras, without everloop itself."""
    lists = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    wanted = [Requirement(line) for lines in lists for line in lines]
    return [one for one in wanted if one.name != "everloop"]


def bounds() -> dict[str, Version]:
    """Return the lower bound of each required package."""
    found: dict[str, Version] = {}
    for one in requirements():
        (lower,) = (Version(clause.version) for clause in one.specifier if clause.operator == ">=")
        assert found.setdefault(canonicalize_name(one.name), lower) == lower, (
            f"{one.name} has two bounds"
        )
    return found


def pins(name: str) -> dict[str, Version]:
    """Return the versions in a file of constraints."""
    lines = [line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]
    pairs = [line.split("==") for line in lines]
    return {canonicalize_name(package): Version(version) for package, version in pairs}


def test_the_lowest_versions_are_the_lower_bounds() -> None:
    lowest, floors = pins("constraints-lowest.txt"), bounds()
    assert lowest.keys() == floors.keys()
    for name in floors.keys() - NOT_RUN_LOWEST:
        assert lowest[name] == floors[name], name
    for name in NOT_RUN_LOWEST:
        assert lowest[name] > floors[name], name


def test_the_tested_versions_are_within_the_bounds() -> None:
    tested, floors = pins("constraints.txt"), bounds()
    assert floors.keys() <= tested.keys()
    for name, floor in floors.items():
        assert tested[name] >= floor, name


def test_pythons_named_are_pythons_allowed() -> None:
    line = re.compile(r"Programming Language :: Python :: (3\.\d+)")
    named = [found[1] for found in map(line.fullmatch, PROJECT["classifiers"]) if found]
    lowest = min(named, key=Version)
    assert PROJECT["requires-python"] == f">={lowest}"
    assert PYPROJECT["tool"]["ruff"]["target-version"] == f"py{lowest.replace('.', '')}"


def test_the_wheel_is_told_to_hold_everloop_and_nothing_else() -> None:
    targets = PYPROJECT["tool"]["hatch"]["build"]["targets"]
    assert targets["wheel"] == {"packages": ["everloop"]}
    assert all((ROOT / path.removeprefix("/")).exists() for path in targets["sdist"]["include"])


@pytest.mark.parametrize("name", ["online-cifar100", "rotated-mnist", "three-types"])
def test_tables_are_data_of_the_package(name: str) -> None:
    tables = importlib.resources.files("everloop.scenarios") / "tables"
    assert (tables / f"{name}.yaml").read_text().startswith("title:")


def test_types_are_announced() -> None:
    assert (importlib.resources.files("everloop") / "py.typed").is_file()


def test_the_version_is_the_packages_own() -> None:
    assert importlib.metadata.version("everloop") == everloop.__version__
    assert "version" in PROJECT["dynamic"]


def test_the_command_is_the_module() -> None:
    (command,) = importlib.metadata.entry_points(group="console_scripts", name="everloop")
    assert command.value == PROJECT["scripts"]["everloop"]
