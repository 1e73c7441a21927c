"""Logistic regression with differential privacy, by the engine that trains the language models.

Here: two models of one layer and their training. Elsewhere: Poisson draws, price and noise (privacy/mechanisms.py),
clipping (training/bookkeeping.py), features (hashed_words.py, embeddings.py), the comparison (direct.py). Source:
Algorithm 1 of Abadi et al. (2016), arXiv:1607.00133. Shapes: B rows of a micro-batch, W words of a text, F features,
D dimensions of an embedding, K classes.

Every setting is fixed in advance, and nothing is chosen by a private number: ``STEPS`` steps of a ``BATCH_SHARE`` of
the units, gradients clipped at ``CLIP``, plain momentum, the mean of the second half of the steps as the result.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from safesynthdp.privacy.accounting import find_noise_multiplier
from safesynthdp.privacy.losses import Adjacency
from safesynthdp.privacy.mechanisms import DPSGDMechanism
from safesynthdp.privacy.randomness import StepKeys
from safesynthdp.training.bookkeeping import BookkeepingEngine
from safesynthdp.training.clipping import trainable_parameters
from safesynthdp.training.plan import PrivacyPlan
from safesynthdp.training.step import add_noise, set_gradients, zero_sums
from safesynthdp.training.units import Units

STEPS = 60
BATCH_SHARE = 0.25
CLIP = 1.0
RATE_PER_EPSILON, MAX_LEARNING_RATE = 8.0, 64.0
"""The learning rate on words is 8 epsilon, at most 64: settled once on ``vader`` text; more noise wants less."""
EMBEDDED_LEARNING_RATE = 4.0
"""On vectors of length 1, at any epsilon: settled once on held-out ``vader`` text."""
MOMENTUM = 0.9
BIAS_INPUT = 0.5
IGNORED = -1
"""The class of a record whose label is outside the public list."""
_ROWS, _CELLS = 1024, 2**19
Ints = NDArray[np.int64]


class HashedRegression(nn.Module):
    """Scores of sets of hashed words: a table [F + 2, K] whose rows are added up.

    Row F is the bias, which stands in every record; row F + 1 is padding and always weighs nothing.
    """

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.num_features = num_features
        self.table = nn.Embedding(num_features + 2, num_classes)
        nn.init.zeros_(self.table.weight)

    def forward(self, rows: Sequence[Ints]) -> Tensor:
        """Return [B, K]; a record's words weigh 1 / sqrt(their number) each."""
        ids_BW, weights_BW = self._padded(rows)
        scores: Tensor = (self.table(ids_BW) * weights_BW[:, :, None]).sum(dim=1)
        return scores

    def _padded(self, rows: Sequence[Ints]) -> tuple[Tensor, Tensor]:
        width = 1 + max((len(row) for row in rows), default=0)
        ids = np.full((len(rows), width), self.num_features + 1, dtype=np.int64)
        weights = np.zeros((len(rows), width), dtype=np.float32)
        for place, row in enumerate(rows):
            ids[place, 0], weights[place, 0] = self.num_features, BIAS_INPUT
            ids[place, 1 : 1 + len(row)] = row
            weights[place, 1 : 1 + len(row)] = 1 / np.sqrt(max(len(row), 1))
        return torch.from_numpy(ids), torch.from_numpy(weights)


class EmbeddedRegression(nn.Module):
    """Scores of embeddings from a frozen public encoder: one affine layer [D, K]."""

    def __init__(self, num_dimensions: int, num_classes: int) -> None:
        super().__init__()
        self.affine = nn.Linear(num_dimensions, num_classes)
        nn.init.zeros_(self.affine.weight)
        nn.init.zeros_(self.affine.bias)

    def forward(self, rows: Sequence[NDArray[np.float32]]) -> Tensor:
        """Return [B, K]."""
        scores: Tensor = self.affine(torch.from_numpy(np.stack(rows)))
        return scores


def make_mechanism(*, epsilon: float, delta: float, adjacency: Adjacency, num_units: int) -> DPSGDMechanism:
    """Return the mechanism that spends (epsilon, delta) in ``STEPS`` steps.

    Raises:
        ConfigError: If no noise is enough.
    """
    batch_size = BATCH_SHARE * num_units
    noise_multiplier = find_noise_multiplier(
        target_epsilon=epsilon,
        delta=delta,
        sample_rate=batch_size / num_units,
        steps=STEPS,
        accountant="pld",
        adjacency=adjacency,
    )
    return DPSGDMechanism(
        num_records=num_units,
        expected_batch_size=batch_size,
        noise_multiplier=noise_multiplier,
        steps=STEPS,
        per_sample_max_grad_norm=CLIP,
        accountant="pld",
        adjacency=adjacency,
    )


def learning_rate_for(epsilon: float) -> float:
    """Return the learning rate on words, a function of public numbers alone."""
    return min(MAX_LEARNING_RATE, RATE_PER_EPSILON * epsilon)


def train(
    model: HashedRegression | EmbeddedRegression,
    rows_N: Sequence[NDArray[Any]],
    classes_N: Ints,
    units: Units,
    *,
    mechanism: DPSGDMechanism,
    learning_rate: float,
    keys: StepKeys,
) -> None:
    """Train the model in place by ``mechanism``; its weights end as the mean of the second half of the steps.

    Guarantee:
        The weights are (epsilon, delta)-DP with the price of ``mechanism``: each unit of a Poisson draw adds one
        record's gradient, clipped, the sum gets the priced noise once, and the rest is post-processing. A record whose
        class is ``IGNORED`` adds exactly nothing.
    """
    plan = PrivacyPlan(sampler=mechanism, is_private=True, histogram=None, not_covered=())
    trainable = trainable_parameters(model)
    engine, sums = BookkeepingEngine(model), zero_sums(trainable)
    optimizer = torch.optim.SGD(trainable.values(), lr=learning_rate, momentum=MOMENTUM)
    means = {name: torch.zeros_like(parameter) for name, parameter in trainable.items()}
    try:
        for step in range(mechanism.steps):
            for total in sums.values():
                total.zero_()
            drawn = [index for members in units.draw(plan, step=step, keys=keys) for index in members]
            for chosen in _micro_batches(drawn, rows_N):
                with engine.tape(rows=len(chosen)) as tape:
                    truth_B = torch.from_numpy(classes_N[chosen])
                    losses_B = functional.cross_entropy(
                        model([rows_N[i] for i in chosen]), truth_B, ignore_index=IGNORED, reduction="none"
                    )
                    tape.clip_into(sums, losses_B, per_sample_max_grad_norm=mechanism.per_sample_max_grad_norm)
            add_noise(sums, mechanism=mechanism, keys=keys, step=step)
            set_gradients(trainable, sums, divisor=mechanism.expected_batch_size)
            optimizer.step()
            if step >= mechanism.steps // 2:
                for name, parameter in trainable.items():
                    means[name] += parameter.detach() / (mechanism.steps - mechanism.steps // 2)
    finally:
        engine.close()
    with torch.no_grad():
        for name, parameter in trainable.items():
            parameter.copy_(means[name])


def classify(model: HashedRegression | EmbeddedRegression, rows_M: Sequence[NDArray[Any]]) -> NDArray[np.intp]:
    """Return the class of each test record, [M]."""
    found = np.zeros(len(rows_M), dtype=np.intp)
    with torch.no_grad():
        for chosen in _micro_batches(range(len(rows_M)), rows_M):
            found[chosen] = model([rows_M[i] for i in chosen]).argmax(dim=1).numpy()
    return found


def _micro_batches(indices: Sequence[int], rows_N: Sequence[NDArray[Any]]) -> Iterator[list[int]]:
    """Yield batches sorted by length, so that one long text does not pad a thousand short ones."""
    batch = list[int]()
    for index in sorted(indices, key=lambda i: len(rows_N[i])):
        if batch and (len(batch) == _ROWS or (len(batch) + 1) * (len(rows_N[index]) + 1) > _CELLS):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
