"""Runs through the command line and cells of tables, for benchmarks that run whole experiments."""

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
    """Return the result of `everloop run *words` in the folder `out`, on one thread.

    A run that is complete there is not repeated.

    Raises:
        RuntimeError: If the run fails; with the command and the last line of its error.
    """
    if not complete(out):
        command = [sys.executable, "-m", "everloop", "run", *words]
        command += ["--out", str(out), "--overwrite", "--quiet"]
        # so that runs find scenarios in this folder
        path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip().splitlines()[-1]}")
    result: dict[str, Any] = json.loads((out / "result.json").read_text())
    return result


def cell(values: Sequence[float | None], digits: int) -> str:
    """Return the mean and, in brackets, each seed's value, as the cell of a table.

    Args:
        values: One value for each seed; with None among them the cell is a dash.
        digits: Decimals of the mean, 1 or more. The seeds' values have one less.
    """
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "-"
    return (
        f"{statistics.mean(known):.{digits}f} "
        f"({', '.join(f'{value:.{digits - 1}f}' for value in known)})"
    )
