"""Each test gets its own, empty cache folder."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVERLOOP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
