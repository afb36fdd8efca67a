"""Files are replaced as a whole, or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from everloop.loop.disk import write_json


def test_a_file_is_replaced_and_no_other_file_remains(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"long": list(range(100))})
    write_json(path, {"short": 1})
    assert json.loads(path.read_text()) == {"short": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_a_failed_write_does_not_change_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"old": 1})
    for bad in ({"x": float("nan")}, {"x": object()}):
        with pytest.raises((ValueError, TypeError)):
            write_json(path, bad)
    assert json.loads(path.read_text()) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]
