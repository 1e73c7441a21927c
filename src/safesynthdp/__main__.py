"""``python -m safesynthdp``: the console script, for launchers that want a module."""

import sys

from safesynthdp.cli import entry_point

if __name__ == "__main__":
    sys.argv[0] = "safesynthdp"
    entry_point()
