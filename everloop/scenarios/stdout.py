"""Tables on the standard output, whether a terminal, a pipe or an ASCII stream is behind it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

ENDLESS = 10_000  # columns of what is no terminal: nothing is wrapped there


@contextmanager
def stdout() -> Iterator[Console]:
    """A console whose content is written to the standard output when the block ends, without spaces
    at the ends of lines.
    """
    console = Console(width=None if sys.stdout.isatty() else ENDLESS)
    with console.capture() as capture:
        yield console
    for line in capture.get().splitlines():
        print(encodable(line.rstrip(), sys.stdout.encoding or "utf-8"))


def encodable(text: str, encoding: str) -> str:
    """`text` as the encoding can write it: "+-" for "±" if it lacks that, and "?" for any other
    letter that it lacks.
    """
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.replace("±", "+-").encode(encoding, "replace").decode(encoding)
    return text
