"""What the benchmarks that run whole experiments share: runs through the command line, and cells of
tables.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from everloop.scenarios.folder import complete


def run(words: Sequence[str], out: Path) -> dict[str, Any]:
    """The result of `everloop run *words`, from `out` if that run is finished there already; one
    thread each.
    """
    if not complete(out):
        command = [
            sys.executable,
            "-m",
            "everloop",
            "run",
            *words,
            "--out",
            str(out),
            "--overwrite",
            "--quiet",
        ]
        path = os.pathsep.join(
            [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        )  # scenarios that stand here
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip().splitlines()[-1]}")
    result: dict[str, Any] = json.loads((out / "result.json").read_text())
    return result


def cell(values: Sequence[float | None], digits: int) -> str:
    """The mean with `digits` behind the point, and the seeds' own values with one less."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "-"
    return (
        f"{statistics.mean(known):.{digits}f} "
        f"({', '.join(f'{value:.{digits - 1}f}' for value in known)})"
    )
