"""YAML files with any content make an experiment or an error, and never a traceback."""

from __future__ import annotations

from collections import ChainMap
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from everloop.envs.data import digits
from everloop.scenarios import SplitDigits, arguments
from everloop.scenarios.cli import prepare
from everloop.scenarios.run_command import BAD_INPUT

SCHEMA = dict(
    ChainMap(
        arguments.GENERAL,
        arguments.scenario_schema(SplitDigits),
        *arguments.strategy_schemas(SplitDigits).values(),
    )
)


NUMBERS = st.one_of(
    st.integers(-3, 40),
    st.sampled_from([2**31, 2**63, -(2**63), 10**30]),
    st.floats(-10, 10),
    st.sampled_from([float("nan"), float("inf"), 1e300]),
)


VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        NUMBERS,
        st.text(max_size=8),
        st.sampled_from(["ewc", "null", "1e-3", "none", "all", "sgd", "class"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=2)
    ),
    max_leaves=4,
)


FILES = st.dictionaries(
    st.one_of(
        st.sampled_from(sorted({*SCHEMA, "training", "ewc", "optimizer.momentum"})),
        st.text(max_size=8),
    ),
    VALUES,
    max_size=4,
)


def check_file(content: dict[str, Any], strategies: str, folder: Path) -> None:
    """Check that it makes an experiment or a `BAD_INPUT` with a message, and writes nothing."""
    file = folder / "any.yaml"
    file.write_text(yaml.safe_dump(content, allow_unicode=True))
    try:
        prepare(["run", "split-digits", "--config", str(file), "--strategies", strategies])
    except BAD_INPUT as refused:
        assert str(refused).strip()  # noqa: PT017 - it may as well be an experiment
    assert [path.name for path in folder.iterdir()] == ["any.yaml"]


CHOSEN = st.sampled_from(["none", "ewc", "replay", "lwf,der", "si,l2", "icarl", "gem", "joint"])


FIXTURES = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@settings(deadline=None, max_examples=200, suppress_health_check=FIXTURES)
@given(content=FILES, strategies=CHOSEN)
def test_no_content_of_a_file_ends_in_a_traceback(
    content: dict[str, Any], strategies: str, tmp_path: Path
) -> None:
    digits()
    check_file(content, strategies, tmp_path)


@pytest.mark.slow
@settings(deadline=None, max_examples=5000, suppress_health_check=FIXTURES)
@given(content=FILES, strategies=CHOSEN)
def test_no_content_of_5000_files_ends_in_a_traceback(
    content: dict[str, Any], strategies: str, tmp_path: Path
) -> None:
    check_file(content, strategies, tmp_path)


@settings(deadline=None, max_examples=200, suppress_health_check=FIXTURES)
@given(
    text=st.one_of(st.text(max_size=60), st.binary(max_size=60).map(lambda b: b.decode("latin-1")))
)
def test_no_text_in_a_file_ends_in_a_traceback(text: str, tmp_path: Path) -> None:
    file = tmp_path / "any.yaml"
    file.write_text(text)
    try:
        prepare(["run", "split-digits", "--config", str(file)])
    except BAD_INPUT as refused:
        assert str(refused).strip()  # noqa: PT017 - it may as well be an experiment
