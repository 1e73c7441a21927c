"""``python -m safesynthdp``: the console script, for launchers and tasks that know the interpreter alone."""

import sys

from safesynthdp.cli import entry_point

if __name__ == "__main__":
    sys.argv[0] = "safesynthdp"
    entry_point()
