"""A small GRU and a small CNN on words, in torch.

Here: vocabulary, models, training loop. Elsewhere: the other families (downstream.py). Sources: Cho et al. (2014),
arXiv:1406.1078, for the GRU; Kim (2014), arXiv:1408.5882, for the CNN. The vocabulary comes from the training side, a
word unknown to it is one of ``NUM_UNKNOWN`` hashed rows. Shapes: B texts, T words, D dimensions, K classes.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from safesynthdp.evaluation.downstream import NoWordsError, Predictions
from safesynthdp.records import canonical_text

MAX_WORDS = 128
MAX_CHARACTERS = 20_000
MAX_VOCABULARY = 20_000
NUM_UNKNOWN = 64
DIMENSIONS, WIDTH = 64, 64
KERNELS = (2, 3, 4)
BATCH, LEARNING_RATE, DROPOUT, MIN_COUNT = 64, 3e-3, 0.3, 2
MIN_STEPS, NUM_EPOCHS = 200, 8
PAD = 0
Ids = NDArray[np.int64]


class SmallGRU(nn.Module):
    """Embedding, a GRU in both directions, the maximum over words, an affine layer."""

    def __init__(self, num_rows: int, num_classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_rows, DIMENSIONS, padding_idx=PAD)
        self.gru = nn.GRU(DIMENSIONS, WIDTH, batch_first=True, bidirectional=True)
        self.affine = nn.Linear(2 * WIDTH, num_classes)

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Return scores [B, K]."""
        words_BTD = functional.dropout(self.embedding(ids_BT), DROPOUT, self.training)
        states_BTW, _ = self.gru(words_BTD)
        hidden_BTW = states_BTW.masked_fill((ids_BT == PAD)[:, :, None], -1.0)  # the least a state can be
        scores: Tensor = self.affine(functional.dropout(hidden_BTW.amax(dim=1), DROPOUT, self.training))
        return scores


class SmallCNN(nn.Module):
    """Embedding, filters over 2, 3 and 4 words, the maximum over places, an affine layer."""

    def __init__(self, num_rows: int, num_classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_rows, DIMENSIONS, padding_idx=PAD)
        self.filters = nn.ModuleList(nn.Conv1d(DIMENSIONS, WIDTH, size) for size in KERNELS)
        self.affine = nn.Linear(len(KERNELS) * WIDTH, num_classes)

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Return scores [B, K]."""
        words_BDT = functional.pad(self.embedding(ids_BT).transpose(1, 2), (0, max(KERNELS) - 1))
        found = [functional.relu(layer(words_BDT)).amax(dim=2) for layer in self.filters]
        scores: Tensor = self.affine(functional.dropout(torch.cat(found, dim=1), DROPOUT, self.training))
        return scores


MODELS: dict[str, type[SmallGRU] | type[SmallCNN]] = {"gru": SmallGRU, "cnn": SmallCNN}


def predict_neural(
    texts: Sequence[str], labels: Sequence[str], *, test: Sequence[str], families: Sequence[str], seed: int
) -> Predictions:
    """Train each network from ``seed`` and predict.

    Raises:
        NoWordsError: If no training text holds a word.
    """
    names = sorted(set(labels))
    number = {name: k for k, name in enumerate(names)}
    truth_N = torch.tensor([number[label] for label in labels])
    words, held_out = ([_words(text) for text in side] for side in (texts, test))
    vocabulary = _vocabulary(words)
    train, unseen = ([_ids(row, vocabulary) for row in side] for side in (words, held_out))
    num_rows = 1 + NUM_UNKNOWN + len(vocabulary)
    classes = dict[str, list[str]]()
    for family in families:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = MODELS[family](num_rows, len(names))
            _fit(model, train, truth_N)
        classes[family] = [names[k] for k in _classify(model, unseen)]
    return Predictions(classes, ())


def _fit(model: nn.Module, rows: Sequence[Ids], truth_N: Tensor) -> None:
    """Adam on shuffled batches, for 8 passes but at least 200 steps."""
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    model.train()
    done = 0
    while done < max(MIN_STEPS, NUM_EPOCHS * -(-len(rows) // BATCH)):
        for chosen in torch.split(torch.randperm(len(rows)), BATCH):
            scores_BK = model(_padded([rows[i] for i in chosen.tolist()]))
            optimizer.zero_grad()
            functional.cross_entropy(scores_BK, truth_N[chosen]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            done += 1


def _classify(model: nn.Module, rows: Sequence[Ids]) -> list[int]:
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    found = [0] * len(rows)
    model.eval()
    with torch.inference_mode():
        for start in range(0, len(order), 4 * BATCH):
            chosen = order[start : start + 4 * BATCH]
            for index, said in zip(chosen, model(_padded([rows[i] for i in chosen])).argmax(dim=1), strict=True):
                found[index] = int(said)
    return found


def _words(text: str) -> list[str]:
    return canonical_text(text[:MAX_CHARACTERS]).split()[:MAX_WORDS]


def _vocabulary(words: Sequence[Sequence[str]]) -> dict[str, int]:
    """Return the rows of the words that stand at least twice; the most common first, ties by the alphabet."""
    counts = Counter(word for row in words for word in row)
    if not counts:
        raise NoWordsError
    known = sorted((word for word in counts if counts[word] >= MIN_COUNT), key=lambda word: (-counts[word], word))
    return {word: 1 + NUM_UNKNOWN + place for place, word in enumerate(known[:MAX_VOCABULARY])}


def _ids(words: Sequence[str], vocabulary: dict[str, int]) -> Ids:
    return np.array([vocabulary.get(word) or _unknown(word) for word in words] or [PAD], dtype=np.int64)


def _unknown(word: str) -> int:
    return 1 + hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()[0] % NUM_UNKNOWN


def _padded(rows: Sequence[Ids]) -> Tensor:
    ids = np.full((len(rows), max(len(row) for row in rows)), PAD, dtype=np.int64)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = row
    return torch.from_numpy(ids)
