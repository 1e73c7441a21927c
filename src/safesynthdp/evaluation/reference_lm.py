"""How surprising each text is to one fixed public language model, in bits per byte.

Here: the model, the score of a text, the cache. Elsewhere: distances of these distributions (form.py). Per-token
perplexity does not compare across tokenizers, bits per byte do. Higher than real text: odd words or order. Lower is
also bad: repetition, stock phrases. Only the first 400 characters of a text are scored. Shapes: N texts.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safesynthdp.errors import ConfigError, UserError
from safesynthdp.evaluation.encoders import weights_digest
from safesynthdp.fetching import cache_directory
from safesynthdp.privacy.storage import make_private_directory, write_atomically
from safesynthdp.progress import progress

AUTO = "auto"
DEFAULT = "smollm2-135m"
MAX_TEXTS = 400
MAX_CHARACTERS = 400
MAX_TOKENS = 512
TOKENS_PER_BATCH = 1_024
_FORMAT = "bits-per-byte-v1"
Floats = NDArray[np.float64]


class ReferenceModel:
    """A causal language model that nothing here trains; loaded on first use."""

    def __init__(self, name: str, source: str) -> None:
        self.name = name
        self._source = source
        self._loaded: tuple[Any, Any] | None = None

    def bits_per_byte(self, texts: Sequence[str]) -> Floats:
        """Return ``-log2 p(text) / bytes`` of the start of each text, [N]; NaN for an empty one.

        Raises:
            ConfigError: If the model cannot be loaded.
            SafeSynthError: If the cache cannot be written.
        """
        distinct = sorted({text[:MAX_CHARACTERS] for text in texts if text.strip()})
        path = cache_directory() / "embeddings" / f"{self._key(distinct)}.npy"  # private, like the vectors
        scores = _read(path, len(distinct))
        if scores is None:
            with progress(f"scoring with {self.name}", total=len(distinct), unit="texts") as advance:
                scores = self._score(distinct, advance)
            make_private_directory(path.parent)
            write_atomically(path, lambda target: _save(target, scores), private=True)
        known = dict(zip(distinct, scores.tolist(), strict=True))
        return np.array([known.get(text[:MAX_CHARACTERS], math.nan) for text in texts], dtype=np.float64)

    def count_tokens(self, texts: Sequence[str]) -> Floats:
        """Return the number of tokens of each text, of its first 8,000 characters."""
        tokenizer = self._load()[1]
        return np.array([len(tokenizer(text[:8_000])["input_ids"]) for text in texts], dtype=np.float64)

    def _key(self, distinct: Sequence[str]) -> str:
        digest = hashlib.sha256(f"{_FORMAT}\n{weights_digest(*self._load())}\n".encode())
        for text in distinct:
            content = text.encode("utf-8", "surrogatepass")
            digest.update(len(content).to_bytes(8, "big") + content)
        return digest.hexdigest()

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            import torch
            from transformers import AutoModelForCausalLM, AutoTokenizer

            from safesynthdp.models import quiet

            quiet()
            try:
                tokenizer: Any = AutoTokenizer.from_pretrained(self._source)
                model: Any = AutoModelForCausalLM.from_pretrained(
                    self._source, dtype=torch.float32, use_safetensors=True
                )
            except (OSError, ValueError, ImportError, KeyError, RuntimeError) as error:
                raise ConfigError(
                    f"reference_model={self.name} is no causal LM in safetensors that transformers loads "
                    f"({type(error).__name__}); check the name, or give null to leave bits per byte out"
                ) from error
            device = "cuda" if torch.cuda.is_available() else "cpu"
            self._loaded = (model.eval().to(device), tokenizer)
        return self._loaded

    def _score(self, texts: Sequence[str], advance: Any) -> Floats:
        model, tokenizer = self._load()
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if start is None:
            raise ConfigError(f"reference_model={self.name} has neither a first nor a last token; choose another")
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"][:MAX_TOKENS] for text in texts]
        found = np.zeros(len(texts))
        for batch in _batches([len(tokens) for tokens in ids]):
            found[batch] = _bits(model, [[int(start), *ids[i]] for i in batch])
            advance(len(batch))
        sizes = np.array([len(text.encode("utf-8", "surrogatepass")) for text in texts], dtype=np.float64)
        return np.asarray(found / np.maximum(sizes, 1.0), dtype=np.float64)


def choose_reference(wanted: str | None) -> tuple[ReferenceModel | None, str | None]:
    """Return the model for ``--reference_model``, and why there is none.

    ``auto`` takes the builtin if it was fetched before; null leaves bits per byte out.

    Raises:
        UserError: If the name is empty, or the weights of a run.
        SafeSynthError: If the builtin cannot be fetched.
    """
    from safesynthdp.builtin_models import BUILTIN_MODELS, builtin_model_path

    if wanted is None:
        return None, "reference_model is null"
    if wanted == AUTO:
        if not (cache_directory() / f"{DEFAULT}-fp32" / "converted.json").is_file():
            return None, f"{DEFAULT} was not fetched yet: --reference_model {DEFAULT} does"
        wanted = DEFAULT
    if not wanted.strip():
        raise UserError("reference_model is empty; give a name, a folder, or null to leave bits per byte out")
    source = str(builtin_model_path(wanted)) if wanted in BUILTIN_MODELS else wanted
    return ReferenceModel(wanted, source), None


def _bits(model: Any, ids: Sequence[list[int]]) -> Floats:
    """Return ``-log2 p`` of all tokens after the first of each row."""
    import torch

    longest = max(map(len, ids))
    device = next(model.parameters()).device
    tokens = torch.tensor([row + [0] * (longest - len(row)) for row in ids], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids], device=device)
    with torch.inference_mode():
        logits = model(input_ids=tokens, attention_mask=mask).logits[:, :-1].float()
        losses = logits.logsumexp(dim=2) - logits.gather(2, tokens[:, 1:, None])[:, :, 0]
    return np.asarray(((losses * mask[:, 1:]).sum(dim=1) / math.log(2)).double().cpu().numpy())


def _batches(lengths: Sequence[int]) -> list[list[int]]:
    """Texts of like length together, at most ``TOKENS_PER_BATCH`` padded tokens a batch."""
    found = list[list[int]]()
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if found and (lengths[index] + 1) * (len(found[-1]) + 1) <= TOKENS_PER_BATCH:
            found[-1].append(index)
        else:
            found.append([index])
    return found


def _save(path: Any, scores: Floats) -> None:
    with path.open("wb") as handle:
        np.save(handle, scores, allow_pickle=False)


def _read(path: Any, num_texts: int) -> Floats | None:
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found if found.shape == (num_texts,) and found.dtype == np.float64 and np.isfinite(found).all() else None
