"""`everloop`, and `python -m everloop`."""

import sys

from everloop.scenarios import cli
from everloop.scenarios.jobs import end_on_sigterm


def main() -> int:
    """The command line as a process of its own; returns the exit status."""
    end_on_sigterm()
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
