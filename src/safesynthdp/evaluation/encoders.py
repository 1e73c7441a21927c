"""Which model turns a text into a vector: any encoder of the hub or of a folder, the builtin one, or tf-idf.

Here: choosing and loading. Elsewhere: the cache (embeddings.py), the builtin's files (builtin_encoders.py).
Plain ``transformers``: ``AutoModel``, mean of the last hidden state over the attention mask, L2-normalised, at most 256
tokens, batches of texts of like length. Without a model: tf-idf of words and pairs of words, reduced by a singular
value decomposition fitted on the texts that are compared; that is said, since it sees no meaning.
A static encoder (the mean of the input embeddings, no layer) scores shuffled words exactly like real text, so it
exists only as ``--fast``, with a warning. Shapes: N texts, T tokens, D dimensions.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from safesynthdp.builtin_encoders import BUILTIN_ENCODERS, builtin_encoder_path, cached_encoder_path
from safesynthdp.errors import ConfigError
from safesynthdp.evaluation.threads import one_thread

AUTO, TFIDF = "auto", "tfidf"
DEFAULT = "minilm"
MAX_TOKENS = 256
MAX_CHARACTERS = 8_000  # more than 256 tokens of any script; a record of 1 MB is not tokenized whole
TOKENS_PER_BATCH = 8_192
SVD_DIMENSIONS = 100
SVD_FEATURES = 20_000
SVD_SEED = 7_700
Advance = Callable[[int], None]
Vectors = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """How texts become vectors, [N, D] float32 with rows of length 1."""

    name: str
    """As it stands in metrics.json."""
    kind: Literal["model", "static", "tfidf"]
    digest: str
    """Changes whenever the vectors would."""
    model: Any = None
    tokenizer: Any = None
    warnings: tuple[str, ...] = ()

    @property
    def sees_word_order(self) -> bool:
        """Whether shuffling the words of a text moves its vector."""
        return self.kind != "static"

    def encode(self, texts: Sequence[str], *, advance: Advance) -> Vectors:
        """Return the vector of each text; tf-idf is fitted on these very texts."""
        if self.kind == "tfidf":
            found = _reduced_tfidf(texts)
            advance(len(texts))
            return found
        return _encode(self, texts, advance)


def choose_encoder(wanted: str = AUTO, *, fast: bool = False) -> Encoder:
    """Return the encoder for ``--embedding_model``.

    Args:
        wanted: ``auto`` (the builtin if it was fetched before, else tf-idf), ``minilm`` (fetched if need be),
            ``tfidf``, a local folder or the id of a model on the hub.
        fast: Leave out all layers: the mean of the model's input embeddings.

    Raises:
        ConfigError: If there is no such model, or it has no use.
        SafeSynthError: If the builtin cannot be fetched.
    """
    if wanted == TFIDF:
        return _tfidf("--embedding_model tfidf was given", fast=fast)
    if wanted == AUTO:
        found = cached_encoder_path(DEFAULT)
        if found is None:
            return _tfidf(f"{DEFAULT} was not fetched yet: --embedding_model {DEFAULT} does", fast=fast)
        return _load(DEFAULT, str(found), fast=fast)
    source = str(builtin_encoder_path(wanted)) if wanted in BUILTIN_ENCODERS else wanted
    return _load(wanted, source, fast=fast)


def _tfidf(why: str, *, fast: bool) -> Encoder:
    if fast:
        raise ConfigError(f"fast: a static encoder needs an embedding model; {why}")
    warning = f"embeddings: tf-idf and SVD stand in for a sentence encoder ({why}); MAUVE and Frechet see words only"
    return Encoder(name="tfidf-svd", kind="tfidf", digest=f"tfidf-svd-{SVD_DIMENSIONS}", warnings=(warning,))


def _load(name: str, source: str, *, fast: bool) -> Encoder:
    """Load weights from safetensors only: another format may run code."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    from safesynthdp.models import quiet

    quiet()
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(source)
        model: Any = AutoModel.from_pretrained(source, dtype=torch.float32, use_safetensors=True)
    except (OSError, ValueError, ImportError, KeyError, RuntimeError) as error:
        raise ConfigError(
            f"embedding_model={name} is neither {', '.join((AUTO, TFIDF, *BUILTIN_ENCODERS))} nor a folder or hub id "
            f"with a tokenizer and safetensors that AutoModel loads ({type(error).__name__}); check the name"
        ) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    model = model.eval().to(_device())
    _refuse_mute(name, model)
    shown = Path(name).name if Path(name).is_dir() else name
    kind: Literal["model", "static"] = "static" if fast else "model"
    warnings = (f"embeddings: --fast leaves out all layers of {shown}: shuffled words score like real text",)
    return Encoder(
        name=f"{shown} (static)" if fast else shown, kind=kind, digest=f"{weights_digest(model, tokenizer)}-{kind}",
        model=model, tokenizer=tokenizer, warnings=warnings if fast else (),
    )  # fmt: skip


def _refuse_mute(name: str, model: Any) -> None:
    """A model that needs more than tokens and a mask (an encoder with a decoder, say) is no sentence encoder."""
    import torch

    ids = torch.ones((1, 2), dtype=torch.long, device=next(model.parameters()).device)
    try:
        with torch.inference_mode():
            hidden = model(input_ids=ids, attention_mask=ids).last_hidden_state
        is_usable = hidden.shape[:2] == ids.shape
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        is_usable = False
    if not is_usable:
        raise ConfigError(
            f"embedding_model={name} gives no hidden state for a text alone; choose an encoder such as {DEFAULT}"
        )


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def weights_digest(model: Any, tokenizer: Any) -> str:
    """Return a hash of all weights and of the vocabulary."""
    digest = hashlib.sha256()
    for name, weights in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weights.detach().cpu().contiguous().view(-1).numpy().tobytes())
    digest.update(repr(sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))).encode())
    return digest.hexdigest()


def _encode(encoder: Encoder, texts: Sequence[str], advance: Advance) -> Vectors:
    """Run the model over batches of texts of like length."""
    import torch

    positions = getattr(encoder.model.config, "max_position_embeddings", None) or MAX_TOKENS
    longest = min(MAX_TOKENS, positions)
    tokens = [
        encoder.tokenizer(text[:MAX_CHARACTERS] or " ", truncation=True, max_length=longest)["input_ids"]
        for text in texts
    ]
    tokens = [ids or [encoder.tokenizer.pad_token_id or 0] for ids in tokens]
    order = sorted(range(len(texts)), key=lambda i: len(tokens[i]))
    found: Vectors | None = None
    for batch in _batches(order, [len(ids) for ids in tokens]):
        with torch.inference_mode():
            pooled = _pool(encoder, [tokens[i] for i in batch])
        if found is None:
            found = np.zeros((len(texts), pooled.shape[1]), dtype=np.float32)
        found[batch] = pooled
        advance(len(batch))
    return np.zeros((0, 1), dtype=np.float32) if found is None else found


def _pool(encoder: Encoder, tokens: Sequence[list[int]]) -> Vectors:
    """Return the mean over the real tokens, L2-normalised, [B, D]."""
    import torch

    longest, pad = max(map(len, tokens)), encoder.tokenizer.pad_token_id or 0
    device = next(encoder.model.parameters()).device
    ids = torch.tensor([t + [pad] * (longest - len(t)) for t in tokens], device=device)
    mask = torch.tensor([[1] * len(t) + [0] * (longest - len(t)) for t in tokens], device=device)
    if encoder.kind == "static":
        hidden = encoder.model.get_input_embeddings()(ids)
    else:
        hidden = encoder.model(input_ids=ids, attention_mask=mask).last_hidden_state
    summed = (hidden.float() * mask[:, :, None]).sum(dim=1)
    pooled = torch.nn.functional.normalize(summed / mask.sum(dim=1, keepdim=True), dim=1)
    return np.asarray(pooled.nan_to_num().cpu().numpy(), dtype=np.float32)


def _batches(order: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
    """Cut the order into batches of at most ``TOKENS_PER_BATCH`` padded tokens."""
    found = list[list[int]]()
    for index in order:  # sorted by length, so the last of a batch is its longest
        if found and lengths[index] * (len(found[-1]) + 1) <= TOKENS_PER_BATCH:
            found[-1].append(index)
        else:
            found.append([index])
    return found


def _reduced_tfidf(texts: Sequence[str]) -> Vectors:
    """Return tf-idf of words and pairs of words, reduced by a truncated SVD, rows of length 1.

    The last column is 1 for a text without any word that counts. At the origin such a text would be nearer to every
    real text than most real texts are to each other, and a single one would cover them all.
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), max_features=SVD_FEATURES, token_pattern=r"\w+")
    try:
        features: Any = vectorizer.fit_transform([text[:MAX_CHARACTERS] for text in texts])
    except ValueError:  # no word anywhere
        return np.ones((len(texts), 1), dtype=np.float32)
    if features.shape[1] > SVD_DIMENSIONS:
        with one_thread():
            features = TruncatedSVD(SVD_DIMENSIONS, random_state=SVD_SEED).fit_transform(features)
    else:
        features = features.toarray()
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    is_mute = lengths < 1e-9
    return np.asarray(np.hstack([features / np.where(is_mute, 1.0, lengths), is_mute]), dtype=np.float32)
