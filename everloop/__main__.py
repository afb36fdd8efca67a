"""`python -m everloop`."""

import sys

from everloop.scenarios.cli import main

if __name__ == "__main__":
    sys.exit(main())
