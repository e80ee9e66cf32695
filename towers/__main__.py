"""`python -m towers` is `towers`."""

import sys

from towers.cli import main

if __name__ == "__main__":
    sys.exit(main())
