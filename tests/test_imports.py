"""The direction of imports between parts, and the cost of importing everloop."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import everloop

PACKAGE = Path(everloop.__file__).parent
PARTS = {
    "contract": set(),
    "envs": set(),
    "agents": set(),
    "loop": set(),
    "scenarios": {"envs", "agents", "loop"},
}
"""The parts of the package that each part may import, besides itself and the contract."""
FOREIGN = {
    "contract": {"gymnasium", "torch", "einops", "stable_baselines3", "sb3_contrib"},
    "envs": {"torch", "einops", "stable_baselines3", "sb3_contrib"},
    "agents": {"stable_baselines3", "sb3_contrib"},
}
SB3 = {"stable_baselines3", "sb3_contrib"}


def imports(path: Path) -> set[str]:
    """Return the dotted names of all modules that a file imports, at any depth.

    Imports for type checkers do not count in the contract.
    """
    found: set[str] = set()
    tree = ast.parse(path.read_text())
    if path == PACKAGE / "contract.py":  # it types what networks return without importing torch
        tree.body = [
            node
            for node in tree.body
            if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
        ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            assert node.module is not None
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("part", PARTS)
def test_parts_import_only_what_the_design_allows(part: str) -> None:
    for path in [*(PACKAGE / part).rglob("*.py"), *PACKAGE.glob(f"{part}.py")]:
        for name in imports(path):
            packages = name.split(".")
            if packages[0] == "everloop" and len(packages) > 1 and packages[1] in PARTS:
                assert packages[1] in PARTS[part] | {part, "contract"}, (
                    f"{path.relative_to(PACKAGE)} imports {name}"
                )
            assert packages[0] not in FOREIGN.get(part, set()), (
                f"{path.relative_to(PACKAGE)} imports {name}"
            )


def test_only_one_folder_of_the_loop_knows_stable_baselines3() -> None:
    knowing = {
        path.parent.name
        for path in (PACKAGE / "loop").rglob("*.py")
        if {name.split(".")[0] for name in imports(path)} & SB3
    }
    assert knowing == {"sb3"}


def test_imports_inside_the_loop_form_no_circle() -> None:
    """Imports for type checkers count: every file can be read after those that it imports."""
    files = {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path
        for path in (PACKAGE / "loop").rglob("*.py")
    }
    uses = {
        module: {name for name in imports(path) if name in files}
        for module, path in files.items()
        if path.stem != "__init__"
    }
    while leaves := {module for module, needed in uses.items() if not needed & uses.keys()}:
        uses = {module: needed for module, needed in uses.items() if module not in leaves}
    assert uses == {}


def imported(statement: str, packages: str) -> list[str]:
    """Return which of `packages` a new interpreter has imported after `statement`."""
    code = (
        f"import sys\n{statement}\nprint(*[name for name in {packages.split()} if name in "
        "sys.modules])"
    )
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()


def test_importing_everloop_brings_in_nothing_heavy() -> None:
    assert (
        imported("import everloop", "torch stable_baselines3 matplotlib scipy sklearn datasets")
        == []
    )
    assert imported("import torch", "torch") == ["torch"]


def test_importing_the_loop_leaves_stable_baselines3_and_matplotlib_for_later() -> None:
    assert (
        imported("import everloop.loop", "stable_baselines3 sb3_contrib matplotlib tensorboard")
        == []
    )
