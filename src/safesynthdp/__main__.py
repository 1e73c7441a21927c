"""``python -m safesynthdp``: the console script, where only the interpreter is known (a task, a launcher)."""

from safesynthdp.cli import entry_point

if __name__ == "__main__":
    entry_point()
