"""Tables on the standard output, which may be a terminal, a pipe or an ASCII stream."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

ENDLESS = 10_000  # columns of a pipe or a file, so that nothing is wrapped there


@contextmanager
def stdout() -> Iterator[Console]:
    """Provide a console whose content goes to the standard output when the block ends.

    A terminal wraps long lines; a pipe or a file gets whole lines. Trailing spaces are removed.
    """
    console = Console(width=None if sys.stdout.isatty() else ENDLESS)
    with console.capture() as capture:
        yield console
    for line in capture.get().splitlines():
        print(encodable(line.rstrip(), sys.stdout.encoding or "utf-8"))


def encodable(text: str, encoding: str) -> str:
    """Return `text` in characters that the encoding has: "+-" for "±", and "?" for other ones."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.replace("±", "+-").encode(encoding, "replace").decode(encoding)
    return text
