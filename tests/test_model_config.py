"""The model section: one model, and a folder that later stages and published pages know for a folder."""

from pathlib import Path

import pytest

from safesynthdp.errors import ConfigError
from safesynthdp.model_config import FromScratchConfig, ModelConfig


def test_a_local_folder_is_found_from_anywhere_and_never_taken_for_a_name_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ward7" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    found = ModelConfig(model_name_or_path="ward7/model")
    assert found.model_name_or_path == str(tmp_path / "ward7" / "model")
    assert ModelConfig(model_name_or_path=found.model_name_or_path) == found


def test_names_on_the_hub_and_builtin_models_stay_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "smollm2-135m").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("smollm2-135m", "owner/model", "gpt2"):
        assert ModelConfig(model_name_or_path=name).model_name_or_path == name


@pytest.mark.parametrize(
    ("name", "shape"), [(None, None), ("gpt2", FromScratchConfig()), ("", None)], ids=["neither", "both", "empty"]
)
def test_no_model_two_models_and_an_empty_name_are_refused(name: str | None, shape: FromScratchConfig | None) -> None:
    with pytest.raises(ConfigError, match=r"^model\.model_name_or_path"):
        ModelConfig(model_name_or_path=name, from_scratch=shape)
