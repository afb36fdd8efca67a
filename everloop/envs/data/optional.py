"""Libraries that not every installation has, and what they say when they fail."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def needed(package: str, extra: str, purpose: str) -> Any:
    """The module `package`, or one inside it. Raises ImportError, in one line which names the
    extra, where it isn't installed.

    extra: "" for a package that every installation should have.
    """
    top = package.partition(".")[0]
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        if error.name not in (top, package):
            raise
        install = f'"everloop[{extra}]"' if extra else top
        raise ImportError(f"{purpose} needs the package {top}: pip install {install}") from None


def first_line(error: BaseException) -> str:
    """What went wrong, in one line; its cause instead where it has one."""
    lines = str(error.__cause__ or error).strip().splitlines()
    return lines[0].rstrip(".:") if lines else type(error).__name__
