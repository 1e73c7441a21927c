"""The demo model is converted once, whole or not at all."""

from pathlib import Path

import pytest

from safesynthdp import builtin_models
from safesynthdp.builtin_models import builtin_model_path
from safesynthdp.errors import ConfigError, SafeSynthError
from safesynthdp.fetching import cache_directory

NAME = "smollm2-135m"


class Conversion:
    """Counts its calls and writes two small files."""

    def __init__(self) -> None:
        self.calls = 0
        self.fails_with: Exception | None = None

    def __call__(self, source: Path, folder: Path, *, num_parameters: int) -> None:
        assert (source.read_bytes(), num_parameters) == (b"gguf", 134_515_008)
        self.calls += 1
        (folder / "config.json").write_text("{}")
        if self.fails_with is not None:
            raise self.fails_with
        (folder / "model.safetensors").write_bytes(b"weights")
        (folder / "model.safetensors").chmod(0o600)


@pytest.fixture
def conversion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Conversion:
    """An empty cache, a source that is there, and a conversion that is quick."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = cache_directory() / "source.gguf"
    source.write_bytes(b"gguf")
    monkeypatch.setattr(builtin_models, "fetch", lambda name, say: source)
    made = Conversion()
    monkeypatch.setattr(builtin_models, "_convert", made)
    return made


def folders() -> set[str]:
    return {path.name for path in cache_directory().iterdir() if path.is_dir()}


def test_the_second_call_converts_nothing(conversion: Conversion) -> None:
    said = list[str]()
    path = builtin_model_path(NAME, say=said.append)
    assert path == builtin_model_path(NAME, say=said.append)
    assert conversion.calls == len(said) == 1
    assert (path / "model.safetensors").read_bytes() == b"weights"
    assert (path / "model.safetensors").stat().st_mode & 0o777 == 0o644
    assert folders() == {path.name}


def test_a_damaged_directory_is_made_again(conversion: Conversion) -> None:
    path = builtin_model_path(NAME, say=lambda line: None)
    (path / "model.safetensors").write_bytes(b"weigh")
    assert (builtin_model_path(NAME, say=lambda line: None) / "model.safetensors").read_bytes() == b"weights"
    (path / "config.json").unlink()
    assert (builtin_model_path(NAME, say=lambda line: None) / "config.json").exists()
    (path / "converted.json").write_text("{")
    builtin_model_path(NAME, say=lambda line: None)
    assert conversion.calls == 4


def test_another_pinned_source_is_converted_anew(conversion: Conversion, monkeypatch: pytest.MonkeyPatch) -> None:
    builtin_model_path(NAME, say=lambda line: None)
    monkeypatch.setattr(builtin_models, "_FORMAT", 2)
    builtin_model_path(NAME, say=lambda line: None)
    assert conversion.calls == 2


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(28, "No space left on device"), "the disk is full"),
        (ImportError("no gguf", name="gguf"), "gguf is missing; install it"),
        (ValueError("GGUF model\nwith architecture"), "by this version of transformers (ValueError)"),
    ],
)
def test_a_failed_conversion_leaves_nothing_behind(conversion: Conversion, error: Exception, line: str) -> None:
    conversion.fails_with = error
    with pytest.raises(SafeSynthError) as caught:
        builtin_model_path(NAME, say=lambda said: None)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
    assert folders() == set()


def test_a_killed_process_leaves_nothing_behind(conversion: Conversion) -> None:
    left_over = cache_directory() / f".{NAME}-fp32.99.tmp"
    left_over.mkdir()
    (left_over / "model.safetensors").write_bytes(b"half")
    path = builtin_model_path(NAME, say=lambda line: None)
    assert folders() == {path.name}


def test_a_conversion_that_fails_a_check_is_refused() -> None:
    builtin_models._refuse_failed({"one is off": True})
    with pytest.raises(SafeSynthError, match="not converted: two is off; three is off;"):
        builtin_models._refuse_failed({"one is off": True, "two is off": False, "three is off": False})


def test_an_unknown_model_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"^model.model_name_or_path=gpt-9 .* there are: smollm2-135m"):
        builtin_model_path("gpt-9")


@pytest.mark.slow
def test_the_real_model_loads_and_speaks() -> None:
    import torch
    import transformers

    path = builtin_model_path(NAME)
    model = transformers.AutoModelForCausalLM.from_pretrained(path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    assert model.dtype == torch.float32
    assert not hasattr(model.config, "quantization_config")
    text = "Caf\u00e9 \U0001f600, two  spaces\n"
    ids = tokenizer(text, return_tensors="pt").input_ids
    assert tokenizer.decode(ids[0]) == text
    with torch.no_grad():
        loss = model(input_ids=tokenizer("The capital of France is Paris.", return_tensors="pt").input_ids).logits
    assert tokenizer.decode(loss[0, -3].argmax()) == " Paris"
