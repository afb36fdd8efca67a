"""The Python examples of the README and the docs run, and so do the README's commands."""

import re
import shlex
from pathlib import Path

import gymnasium as gym
import pytest
import yaml

from everloop.loop import STRATEGIES
from everloop.scenarios import SCENARIOS, arguments
from everloop.scenarios.cli import COMMANDS, main

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = [
    pytest.param(code, id=f"{page.stem}-{i}")
    for page in PAGES
    for i, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL))
]
REDUCED = {
    "split-digits": ["--iterations", "2", "--eval-every", "10000"],
    "control": ["--steps", "1024"],
    "switching-plant": [
        "--steps",
        "2048",
        "--tasks",
        "0,1",
        "--token-size",
        "8",
        "--hidden-size",
        "8",
    ],
}
"""Settings that shorten the commands on built-in data; commands on other data are only parsed."""


@pytest.mark.parametrize("code", EXAMPLES)
def test_an_example_of_the_docs_runs(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    worlds, strategies = set(gym.registry), dict(STRATEGIES)
    try:
        exec(compile(code.replace("16_384", "2_048"), "<docs>", "exec"), {"__name__": "docs"})
    finally:
        STRATEGIES.clear()
        STRATEGIES.update(strategies)
        for name in set(gym.registry) - worlds:
            del gym.registry[name]
    assert dict(STRATEGIES) == strategies


def commands() -> list[list[str]]:
    """Return the README's everloop commands in order, without environment variables."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    lines = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    words = [[word for i, word in enumerate(line) if "=" not in word or i > 0] for line in lines]
    return [line for line in words if line and line[0] == "everloop"]


def test_the_readme_shows_every_command() -> None:
    assert {line[1] for line in commands()} | {"reproduce"} == set(COMMANDS)


def test_the_readmes_commands_run_as_printed_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All run in the same folder, so each must make a run folder of its own."""
    monkeypatch.chdir(tmp_path)
    folders = 0
    for line in commands():
        words = line[1 : line.index(">")] if ">" in line else line[1:]
        named = words[1] if words[0] == "run" and words[1] in SCENARIOS else "split-digits"
        if words[0] == "run" and named not in REDUCED:
            assert arguments.read(words[1:]).scenario is SCENARIOS[named]
            continue
        if words[0] == "run" and "--help" not in words:
            words = [*words, *REDUCED[named]]
            words += ["--seeds", "0-1"] if "--seeds" in words else []
        capsys.readouterr()
        assert main(words) == 0, words
        if ">" in line:
            Path(line[-1]).write_text(capsys.readouterr().out)
        found = len(list(Path("runs").rglob("result.json")))
        assert (
            found > folders or words[0] != "run" or "--help" in words or "--print-config" in words
        ), f"{words} made no folder of its own"
        folders = found
    assert yaml.safe_load(Path("my.yaml").read_text())["ewc"]["strength"] == 10


def test_every_page_that_is_linked_exists() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_page_is_linked_from_the_readme() -> None:
    linked = set(re.findall(r"\(docs/([^)#:]+\.md)\)", (ROOT / "README.md").read_text()))
    assert {page.name for page in PAGES if page.parent.name == "docs"} == linked


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_test_file_that_the_docs_name_exists(page: Path) -> None:
    named = set(re.findall(r"test_\w+\.py", page.read_text()))
    assert named <= {path.name for path in (ROOT / "tests").rglob("test_*.py")}
