"""Fine-tune a pretrained encoder: what most users of labelled text do today.

Here: loading by folder or id, one affine layer on the mean of the last hidden state, AdamW. Elsewhere: the other
families (downstream.py). Plain ``transformers``. Shapes: B texts, T tokens, K classes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from safesynthdp.errors import ConfigError
from safesynthdp.evaluation.downstream import Predictions

LEARNING_RATE, NUM_EPOCHS, BATCH = 3e-5, 5, 32
HEAD_LEARNING_RATE = 1e-3
MAX_TOKENS = 128
MAX_CHARACTERS = 4_000


class MeanClassifier(nn.Module):
    """An encoder, the mean of its last hidden state over real tokens, an affine layer."""

    def __init__(self, encoder: Any, num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.affine = nn.Linear(int(encoder.config.hidden_size), num_classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return scores [B, K]."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state.float()
        mask = attention_mask[:, :, None].float()
        scores: Tensor = self.affine((hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1))
        return scores


def predict_fine_tuned(
    texts: Sequence[str], labels: Sequence[str], *, test: Sequence[str], families: Sequence[str], encoder: str,
    seed: int,
) -> Predictions:  # fmt: skip
    """Fine-tune every weight of ``encoder`` from ``seed`` and predict.

    Raises:
        ConfigError: If it cannot be loaded.
    """
    names = sorted(set(labels))
    number = {name: k for k, name in enumerate(names)}
    truth_N = torch.tensor([number[label] for label in labels])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer, loaded = _load(encoder)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = MeanClassifier(loaded, len(names)).to(device)
        _fit(model, tokenizer, texts, truth_N, device)
    said = _classify(model, tokenizer, test, device)
    return Predictions({family: [names[k] for k in said] for family in families}, ())


def _load(name: str) -> tuple[Any, Any]:
    """Load weights from safetensors only: another format may run code."""
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(name)
        model: Any = AutoModel.from_pretrained(name, dtype=torch.float32, use_safetensors=True)
    except (OSError, ValueError, ImportError, KeyError, RuntimeError) as error:
        raise ConfigError(
            f"downstream_encoder={name} is no folder or id with a tokenizer and safetensors that AutoModel loads "
            f"({type(error).__name__}); check the name"
        ) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer, model


def _fit(model: MeanClassifier, tokenizer: Any, texts: Sequence[str], truth_N: Tensor, device: torch.device) -> None:
    groups = [
        {"params": list(model.encoder.parameters()), "lr": LEARNING_RATE},
        {"params": list(model.affine.parameters()), "lr": HEAD_LEARNING_RATE},
    ]
    optimizer = torch.optim.AdamW(groups)
    model.train()
    for _ in range(NUM_EPOCHS):
        for chosen in torch.split(torch.randperm(len(texts)), BATCH):
            scores_BK = model(**_tokens(tokenizer, [texts[int(i)] for i in chosen.tolist()], device))
            optimizer.zero_grad()
            functional.cross_entropy(scores_BK, truth_N[chosen].to(device)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()


def _classify(model: MeanClassifier, tokenizer: Any, texts: Sequence[str], device: torch.device) -> list[int]:
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    found = [0] * len(texts)
    model.eval()
    with torch.inference_mode():
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            scores = model(**_tokens(tokenizer, [texts[i] for i in chosen], device))
            for index, said in zip(chosen, scores.argmax(dim=1).tolist(), strict=True):
                found[index] = said
    return found


def _tokens(tokenizer: Any, texts: Sequence[str], device: torch.device) -> dict[str, Tensor]:
    plain = [text[:MAX_CHARACTERS] or " " for text in texts]
    found = tokenizer(plain, truncation=True, max_length=MAX_TOKENS, padding=True, return_tensors="pt")
    return {name: found[name].to(device) for name in ("input_ids", "attention_mask")}
