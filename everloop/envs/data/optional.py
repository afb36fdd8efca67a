"""Optional libraries, and how their errors are reported."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def needed(package: str, extra: str, purpose: str) -> Any:
    """Import a module that may not be installed.

    Args:
        package: Name of the module, such as "PIL.Image".
        extra: The extra of everloop that installs it; "" for a package that every installation
            should have.
        purpose: What needs the module, for the error.

    Raises:
        ImportError: If it is not installed. The message is one line that names the extra.
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
    """Return the first line of an error's message, or of its cause if it has one."""
    lines = str(error.__cause__ or error).strip().splitlines()
    return lines[0].rstrip(".:") if lines else type(error).__name__
