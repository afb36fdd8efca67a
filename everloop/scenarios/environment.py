"""The environment of a run: command, versions and machine."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import everloop

PACKAGES = (
    *(
        "everloop",
        "torch",
        "numpy",
        "gymnasium",
        "stable-baselines3",
        "sb3-contrib",
        "einops",
        "scipy",
        "scikit-learn",
    ),
    *("tensorboard", "matplotlib", "jsonargparse", "rich", "pyyaml"),
)


def command() -> str:
    """Return the command line of this process."""
    program = Path(sys.argv[0]).name
    return shlex.join(["everloop" if program == "__main__.py" else program, *sys.argv[1:]])


def environment() -> dict[str, Any]:
    """Return the command, start time, machine and versions of a run, as JSON can hold them."""
    return {
        "command": command(),
        "git_revision": _git_revision(),
        "python": platform.python_version(),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "host": platform.node(),
        "machine": platform.platform(),
        "processor": _processor(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "packages": versions(),
    }


def versions() -> dict[str, str | None]:
    """Return the version of each package that a result depends on; None if it isn't installed."""
    return {name: _version(name) for name in PACKAGES}


def _processor() -> str:
    """Return the model of the CPU as Linux names it, or what the platform module knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    """Return the Git revision of everloop's source, with "-dirty" if changed; None if unknown."""

    def git(*words: str) -> str:
        here = Path(everloop.__file__).parent
        # git is wherever the user has installed it, and the words are those below
        done = subprocess.run(  # nosec B603, B607
            ["git", *words], cwd=here, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        # fails if everloop is installed inside another project's repository
        git("ls-files", "--error-unmatch", "__init__.py")
        return git("describe", "--always", "--dirty", "--abbrev=40")
    except (OSError, subprocess.CalledProcessError):
        return None
