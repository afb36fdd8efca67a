"""Every Python example in the README and the docs runs as it stands."""

import re
from pathlib import Path

import gymnasium as gym
import pytest

from everloop.loop import STRATEGIES

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = [
    pytest.param(code, id=f"{page.stem}-{i}")
    for page in PAGES
    for i, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL))
]


@pytest.mark.parametrize("code", EXAMPLES)
def test_an_example_of_the_docs_runs(code: str) -> None:
    worlds, strategies = set(gym.registry), dict(STRATEGIES)
    try:
        exec(compile(code.replace("16_384", "2_048"), "<docs>", "exec"), {"__name__": "docs"})
    finally:
        STRATEGIES.clear()
        STRATEGIES.update(strategies)
        for name in set(gym.registry) - worlds:
            del gym.registry[name]
    assert dict(STRATEGIES) == strategies


def test_every_page_that_is_linked_exists() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
