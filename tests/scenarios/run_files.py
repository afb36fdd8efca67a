"""What a run has left in its folder."""

import json
from pathlib import Path
from typing import Any


def result_of(folder: Path | str) -> dict[str, Any]:
    """Return the content of result.json without the time that the run took."""
    content: dict[str, Any] = json.loads((Path(folder) / "result.json").read_text())
    del content["wall_seconds"]
    return content
