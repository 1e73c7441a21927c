"""The canaries of a pool, and what else must not hold their texts.

Here: where the texts of each kind come from. Elsewhere: how they are made (canaries.py), who is put in (assignment.py).
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from safesynthdp.attacks.canaries import Canary, make_canaries
from safesynthdp.attacks.pool_config import CanaryConfig, PoolConfig
from safesynthdp.attacks.reference_attacks import MIN_CANDIDATES
from safesynthdp.attacks.shard_spec import derived_seed
from safesynthdp.errors import DataError
from safesynthdp.records import Records, Split, canonical_text
from safesynthdp.sources import read_file

TEXT = "text"
INVENTED = ("random_tokens", "text_suffix")
"""Kinds of which there are as many fresh candidates as are asked for; of the others the texts run out."""


def make_canaries_of(config: PoolConfig, split: Split) -> list[Canary]:
    """Return the canaries that a plan asks for, of both kinds.

    Raises:
        ConfigError: If a kind does not exist or finds too little text.
        DataError: If the file of texts cannot be used; the message names row and file, never a text.
    """
    return [canary for asked in _asked(config) for canary in _made(asked, split, seed=config.seed)]


def candidates_of(config: PoolConfig, split: Split) -> list[tuple[str, str]]:
    """Return (kind, text) of fresh texts of the canaries' formats, in no model, for their exposure.

    Drawn as the canaries are, from the same words, under another seed: without a leak a canary's rank among them is
    uniform. None where the text channel is not attacked, or of a kind that has no fresh ones (``INVENTED``).
    """
    found = list[tuple[str, str]]()
    for asked in _asked(config):
        if asked.kind not in INVENTED or "text" not in config.channels:
            continue
        many = replace(asked, count=MIN_CANDIDATES - 1, repeats=1)
        fresh = [made.text for made in _made(many, split, seed=derived_seed("candidates", config.seed, 0))]
        if not {made.text for made in _made(asked, split, seed=config.seed)}.isdisjoint(fresh):
            raise DataError(f"canaries.kind={asked.kind}: a fresh candidate is a canary; give another seed")
        found += [(asked.kind, text) for text in fresh]
    return found


def _asked(config: PoolConfig) -> list[CanaryConfig]:
    return [asked for asked in (config.canaries, config.text_canaries) if asked.count]


def _made(asked: CanaryConfig, split: Split, *, seed: int) -> Sequence[Canary]:
    is_brought = asked.texts_file is not None
    return make_canaries(
        asked.kind,
        asked.count,
        seed=seed,
        labels=split.train.label_set,
        texts=written_texts(asked.texts_file) if asked.texts_file is not None else split.holdout.texts,
        text_labels=None if is_brought else split.holdout.labels,
        group_size=asked.repeats,
    )


def without_copies(records: Records, texts: Iterable[str]) -> Records:
    """Return the records whose text is none of ``texts``: a canary is in some models, so no copy of it is outside."""
    put_in = {canonical_text(text) for text in texts}
    if not put_in:
        return records
    return records.select(i for i, text in enumerate(records.texts) if canonical_text(text) not in put_in)


def written_texts(path: str) -> list[str]:
    """Return the column ``text`` of a file.

    Raises:
        DataError: If the file cannot be read, or a text is missing or empty.
    """
    table = read_file(path, [TEXT])
    cells = table.columns[TEXT]
    for index, cell in enumerate(cells):
        if not isinstance(cell, str) or not cell.strip():
            raise DataError(f"{table.where(index)}: {TEXT} is empty or no text; drop the row")
    return [str(cell) for cell in cells]
