"""The canaries of a pool, and what else must not hold their texts.

Here: where the texts of each kind come from. Elsewhere: how they are made (canaries.py), who is put in (assignment.py).
"""

from collections.abc import Iterable, Sequence

from safesynthdp.attacks.canaries import Canary, make_canaries
from safesynthdp.attacks.pool_config import PoolConfig
from safesynthdp.attacks.reference_attacks import MIN_CANDIDATES
from safesynthdp.attacks.shard_spec import derived_seed
from safesynthdp.errors import DataError
from safesynthdp.records import Records, Split, canonical_text
from safesynthdp.sources import read_file

TEXT = "text"
INVENTED = ("random_tokens", "text_suffix")
"""Kinds of which there are as many fresh candidates as are asked for; of the others the texts run out."""


def make_canaries_of(config: PoolConfig, split: Split) -> Sequence[Canary]:
    """Return the canaries that a plan asks for.

    Raises:
        ConfigError: If the kind does not exist or finds too little text.
        DataError: If the file of texts cannot be used; the message names row and file, never a text.
    """
    asked = config.canaries
    if not asked.count:
        return []
    is_brought = asked.texts_file is not None
    return make_canaries(
        asked.kind,
        asked.count,
        seed=config.seed,
        labels=split.train.label_set,
        texts=written_texts(asked.texts_file) if asked.texts_file is not None else split.holdout.texts,
        text_labels=None if is_brought else split.holdout.labels,
        group_size=asked.repeats,
    )


def candidates_of(config: PoolConfig, split: Split) -> list[str]:
    """Return fresh texts of the canaries' format, in no model: with any canary they are R of an exposure.

    Drawn as the canaries are, from the same words, under another seed: without a leak a canary's rank among them is
    uniform. Empty where the text channel is not attacked, or the kind has no fresh ones (``INVENTED``).
    """
    asked = config.canaries
    if not asked.count or asked.kind not in INVENTED or "text" not in config.channels:
        return []
    texts = [*split.holdout.texts, *(canary.text for canary in make_canaries_of(config, split))]
    fresh = make_canaries(
        asked.kind,
        MIN_CANDIDATES - 1,
        seed=derived_seed("candidates", config.seed, 0),
        labels=split.train.label_set,
        texts=split.holdout.texts,
    )
    known = set(texts)
    if any(candidate.text in known for candidate in fresh):
        raise DataError(f"canaries.kind={asked.kind}: a fresh candidate is a canary or a record; give another seed")
    return [candidate.text for candidate in fresh]


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
