"""Imports run one way, and a door hides nothing."""

import ast
import importlib.util
import re
import tomllib
from itertools import chain
from pathlib import Path

import pytest

ROOT, DOOR_FOLDERS = Path(__file__).parents[1], ("train", "generate", "eval", "attacks")
PACKAGE = ROOT / "src" / "safesynthdp"
FLOOR_0 = (
    "__init__",
    "builtin_encoders",
    "builtin_models",
    "builtins_vader",
    "cells",
    "clippable",
    "config",
    "data_config",
    "errors",
    "fetching",
    "hub",
    "model_config",
    "models",
    "privacy",
    "progress",
    "record_set",
    "records",
    "runs",
    "sources",
    "text_files",
)
FLOOR: dict[str, int] = dict.fromkeys(FLOOR_0, 0)
FLOOR |= {"training": 1, "generation": 2, "evaluation": 3, "attacks": 3, "reporting": 4}  # entered by hand
FLOOR |= {"cli": 5, "__main__": 6}
ONLY = {"errors": set[str](), "privacy": {"errors"}}  # can be reviewed without the rest
MODULES = {str(p.relative_to(PACKAGE)): p for p in sorted(PACKAGE.rglob("*.py"))}
DOORS = {f"{f}/{p.name}": p for f in DOOR_FOLDERS for p in sorted((ROOT / f).glob("*.py"))}


def imports(path: Path) -> list[list[str]]:
    """Return every imported name, split at the dots; `from a import b` counts as a.b."""
    nodes = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Import | ast.ImportFrom)]
    return [f"{getattr(n, 'module', '')}.{a.name}".strip(".").split(".") for n in nodes for a in n.names]


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_lower_floors(module: str) -> None:
    here, found = Path(module).parts[0].removesuffix(".py"), imports(MODULES[module])
    assert here in FLOOR, f"{here}: give it a floor, and a name that says what it holds"
    others = {name[1] for name in found if name[0] == "safesynthdp" and name[1:]} - {here}
    for other in others:
        assert FLOOR[other] < max(FLOOR[here], 1), f"{here} must not import {other}"
    assert others <= ONLY.get(here, others)
    assert not {name[0] for name in found} & {*DOOR_FOLDERS, "benchmarks"}, "nothing imports a door"


@pytest.mark.parametrize("module", MODULES)
def test_no_module_reads_or_writes_pickles(module: str) -> None:
    names = {name[0] for name in imports(MODULES[module])}
    assert not names & {"pickle", "cloudpickle", "dill", "shelve", "joblib"}


@pytest.mark.parametrize("door", DOORS)
def test_a_door_is_a_short_script_that_hides_no_library(door: str) -> None:
    """Its folder comes first on sys.path: eval/datasets.py would hide datasets."""
    path, project = DOORS[door], tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = chain(project["dependencies"], *project["optional-dependencies"].values())
    assert importlib.util.find_spec(path.stem) is None
    assert not any(name.replace("-", "_").startswith(path.stem) for name in needed)
    assert not (path.parent / "__init__.py").exists()
    assert len(path.read_text().splitlines()) <= 60
    assert door in (ast.get_docstring(ast.parse(path.read_text())) or ""), "say how to launch it"


@pytest.mark.parametrize("door", DOORS)
def test_a_recipe_named_by_a_door_exists(door: str) -> None:
    named = re.findall(r"--config (\w+/recipes/\w+\.yaml)", DOORS[door].read_text())
    assert [recipe for recipe in named if not (ROOT / recipe).is_file()] == []


def test_every_command_line_file_stays_readable() -> None:
    longest = {name: len(path.read_text().splitlines()) for name, path in MODULES.items()}
    assert {name: lines for name, lines in longest.items() if lines > 350} == {}
