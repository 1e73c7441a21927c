"""A run directory is new, this stage's own, or refused."""

import json
import multiprocessing
from pathlib import Path

import pytest

from safesynthdp.errors import ConfigError, SafeSynthError, UserError
from safesynthdp.runs import RunDirectory, parent_of

CONFIG = {"output_dir": "x", "steps": 3}


def made(path: Path) -> RunDirectory:
    return RunDirectory.create(path, kind="finetune", config=CONFIG)


def test_a_new_run_has_its_config_and_manifest_on_disk_at_once(tmp_path: Path) -> None:
    run = made(tmp_path / "run")
    assert run.config() == CONFIG
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    assert manifest["kind"] == "finetune"
    assert {"versions", "hardware", "commit", "command", "run_id"} <= manifest.keys()
    assert not run.is_finished
    assert not run.is_resumed


def test_a_run_without_any_work_is_taken_back_and_one_with_work_is_not(tmp_path: Path) -> None:
    made(tmp_path / "idle").discard()
    assert not (tmp_path / "idle").exists()
    (tmp_path / "mine").mkdir()
    run = made(tmp_path / "mine")
    (tmp_path / "mine/notes.txt").write_text("mine")
    run.discard()
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    busy = made(tmp_path / "busy")
    busy.begin()
    busy.discard()
    assert (tmp_path / "busy/manifest.json").is_file()


def test_the_same_command_finds_its_finished_or_interrupted_run(tmp_path: Path) -> None:
    run = made(tmp_path / "run")
    run.begin()
    run.finish(extra=1)
    again = made(tmp_path / "run")
    assert again.is_finished
    assert again.manifest["extra"] == 1
    other = made(tmp_path / "other")
    other.begin()
    del other
    assert made(tmp_path / "other").is_resumed


@pytest.mark.parametrize("content", ["foreign", "other config", "other kind", "file"])
def test_a_directory_that_holds_something_else_is_refused_and_left_as_it_was(tmp_path: Path, content: str) -> None:
    path = tmp_path / "run"
    if content == "file":
        path.write_text("mine")
    elif content == "foreign":
        path.mkdir()
        (path / "thesis.txt").write_text("mine")
    elif content == "other config":
        RunDirectory.create(path, kind="finetune", config=CONFIG | {"steps": 4}).finish()
    else:
        RunDirectory.create(path, kind="sample", config=CONFIG).finish()
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(ConfigError, match="output_dir="):
        made(path)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def _try_to_create(path: Path, queue: "multiprocessing.Queue[str]") -> None:
    try:
        made(path)
        queue.put("created")
    except SafeSynthError as error:
        queue.put(str(error))


def test_a_directory_in_use_by_another_process_is_refused(tmp_path: Path) -> None:
    run = made(tmp_path / "run")
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    other = context.Process(target=_try_to_create, args=(tmp_path / "run", queue))
    other.start()
    other.join(30)
    assert "in use by process " in queue.get(timeout=5)
    run.finish()


def test_reading_what_is_no_run_or_another_kind_of_run_is_the_user_s_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run directory"):
        RunDirectory.open(tmp_path)
    made(tmp_path / "run").finish()
    with pytest.raises(UserError, match="output of 'finetune', not of 'sample'"):
        RunDirectory.open(tmp_path / "run", kind="sample")


def test_a_parent_is_found_through_its_children_and_only_while_it_is_the_same_run(tmp_path: Path) -> None:
    run = made(tmp_path / "run")
    run.finish()
    sample = RunDirectory.create(tmp_path / "sample", kind="sample", config={}, parents=[run])
    found = parent_of(sample, kind="finetune")
    assert found is not None
    assert found.path == run.path
    manifest = json.loads((run.path / "manifest.json").read_text())
    (run.path / "manifest.json").write_text(json.dumps(manifest | {"run_id": "another"}))
    assert parent_of(sample, kind="finetune") is None


def test_a_run_that_stopped_before_its_work_began_may_be_started_over_with_another_config(tmp_path: Path) -> None:
    made(tmp_path / "run")
    again = RunDirectory.create(tmp_path / "run", kind="finetune", config=CONFIG | {"steps": 9})
    assert again.config()["steps"] == 9
    assert not again.is_resumed
