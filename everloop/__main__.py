"""Entry point of `everloop` and `python -m everloop`."""

import sys

from everloop.scenarios import cli
from everloop.scenarios.jobs import end_on_sigterm


def main() -> int:
    """Run the command line as the main program and return its exit status."""
    end_on_sigterm()
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
