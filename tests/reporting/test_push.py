"""Publishing to the hub: a local server stands at the HTTP edge, everything before it is real."""

import base64
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol

import pytest
import yaml

from safesynthdp.cli import run as run_main
from safesynthdp.reporting.push_command import main

Edit = Callable[[Path, Callable[[Any], object]], None]
STATE: dict[str, Any] = {}


class Runs(Protocol):
    finetune: Path
    sample: Path
    untuned: Path


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's API as an upload of small files asks for."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        STATE["calls"].append((self.path, self.headers.get("Authorization")))
        if STATE["refuses"]:
            self._answer({"error": "no"}, code=403)
        elif self.path == "/api/repos/create":
            STATE["created"] = json.loads(body)
            self._answer({"url": self._address()})
        elif self.path == "/api/validate-yaml":
            STATE["card"] = json.loads(body)["content"]
            self._answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            self._answer({"files": files})
        else:
            lines = [json.loads(line) for line in body.splitlines()]
            STATE["message"] = lines[0]["value"]["summary"]
            STATE["files"] = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            done = {"commitUrl": f"{self._address()}/commit/1", "commitOid": "1" * 40, "pullRequestUrl": None}
            self._answer({"success": True} | done)

    def _address(self) -> str:
        kind = "datasets/" if STATE["created"]["type"] == "dataset" else ""
        return f"http://{self.headers['Host']}/{kind}owner/name"

    def do_GET(self) -> None:
        self._answer({"error": "not here"}, code=404)

    def _answer(self, value: dict[str, Any], *, code: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base class' name)
        del format, args


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    from huggingface_hub import constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)  # what HF_ENDPOINT sets when the library is first imported
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", address, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setenv("HF_TOKEN", "hf_made_up")
    STATE.clear()
    STATE.update(calls=[], refuses=False)
    yield STATE
    server.shutdown()


@pytest.fixture
def checkpoint(runs: Runs) -> Path:
    folder = runs.finetune / "checkpoint"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/home/ward7/model", "r": 8}))
    (folder / "README.md").write_text("the card of the stage")
    return folder


def push(run: Path, *words: str) -> int:
    return run_main(main, ["--run", str(run), "--repo_id", "owner/name", *words])


@pytest.mark.usefixtures("checkpoint")
def test_weights_leave_with_their_card_and_nothing_private(runs: Runs, hub: dict[str, Any]) -> None:
    assert push(runs.finetune) == 0
    assert hub["created"]["visibility"] == "private"
    assert set(hub["files"]) == {
        "adapter_model.safetensors",
        "adapter_config.json",
        "README.md",
        "privacy_statement.json",
    }
    everything = b"".join(hub["files"].values())
    for private in (b"/home", b"ward7", b"f1a9f1a9", b"120000", b"letters.csv", b"the card of the stage"):
        assert private not in everything
    assert yaml.safe_load(hub["files"]["README.md"].decode().split("---")[1])["library_name"] == "peft"
    assert json.loads(hub["files"]["adapter_config.json"])["base_model_name_or_path"].endswith("SmolLM2-135M-Instruct")
    assert hub["message"].endswith("epsilon 4.4800 at delta 1e-06")
    assert hub["calls"][0][1] == "Bearer hf_made_up"


def test_text_leaves_as_a_data_set_with_its_card(runs: Runs, hub: dict[str, Any]) -> None:
    assert push(runs.sample, "--hub_private", "false") == 0
    assert hub["created"]["type"] == "dataset"
    assert hub["created"]["visibility"] == "public"
    assert set(hub["files"]) == {"synthetic.parquet", "README.md", "privacy_statement.json"}
    assert hub["files"]["synthetic.parquet"] == (runs.sample / "synthetic.parquet").read_bytes()
    assert "epsilon 4.4800 at delta 1e-06" in hub["files"]["README.md"].decode()
    statement = json.loads(hub["files"]["privacy_statement.json"])
    assert statement["neighbouring relation"].startswith("add_remove")


def test_what_a_wrong_ledger_promises_is_never_pushed(
    runs: Runs, hub: dict[str, Any], edit: Edit, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(runs.sample / "ledger.json", lambda value: value["releases"][0].update(epsilon=1.0))
    assert push(runs.sample, "--without_guarantee", "true") == 1
    assert "it is not pushed" in capsys.readouterr().err
    assert hub["calls"] == []


def test_text_without_a_guarantee_leaves_only_when_that_is_written_out(
    runs: Runs, hub: dict[str, Any], edit: Edit
) -> None:
    def forget(value: Any) -> None:
        value["entries"] = [{**entry, "kind": "none", "mechanism": {"steps": 300}} for entry in value["entries"][1:]]
        for release in value["releases"]:
            release.update(epsilon=None, entries=["dpsgd"])

    for path in (runs.finetune, runs.sample):
        edit(path / "ledger.json", forget)
    assert push(runs.sample) == 2
    assert hub["calls"] == []
    assert push(runs.sample, "--without_guarantee", "true") == 0
    assert "**Guarantee.** No formal guarantee." in hub["files"]["README.md"].decode()
    assert hub["message"].endswith("no formal guarantee")


@pytest.mark.usefixtures("checkpoint")
def test_weights_that_were_promised_to_stay_are_not_pushed(runs: Runs, hub: dict[str, Any]) -> None:
    (runs.finetune / "state").mkdir()
    (runs.finetune / "state/output_texts.json").write_text("{}")
    assert push(runs.finetune) == 2
    assert hub["calls"] == []


def test_a_hub_that_refuses_is_one_line(runs: Runs, hub: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    hub["refuses"] = True
    assert push(runs.sample) == 1
    error = capsys.readouterr().err
    assert "HTTP 403" in error
    assert error.count("\n") == 1


def test_a_hub_that_nobody_answers_for_is_one_line(
    runs: Runs, hub: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", "http://127.0.0.1:9", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert push(runs.sample) == 1
    error = capsys.readouterr().err
    assert "the hub at http://127.0.0.1:9 cannot be reached" in error
    assert error.count("\n") == 1
    assert hub["calls"] == []


def test_a_name_that_the_hub_cannot_have_is_refused(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(main, ["--run", str(runs.sample), "--repo_id", "no owner"]) == 2
    assert "OWNER/NAME" in capsys.readouterr().err
