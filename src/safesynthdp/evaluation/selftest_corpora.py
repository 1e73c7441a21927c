"""Text with a known fault: real text, and what is done to it.

Here: two sources of real text and seven defects. Elsewhere: what the evaluation makes of them (selftest_matrix.py).
Quick: made-up sentences of a small grammar (nothing is downloaded). Full: the builtin ``vader``, reviews and tweets
with their domain as label; newspaper sentences are the other domain.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from safesynthdp.data_config import DataConfig
from safesynthdp.evaluation.inputs import Corpora
from safesynthdp.record_set import record_hashes
from safesynthdp.records import Records, load_split

SIZES = {"quick": 600, "full": 1000}
CUT_WORDS = 6
NOISE = 0.3
COLLAPSED_SHARE = 0.9
COPIES = 10
OTHER_DOMAIN = "news_editorial"
Pairs = list[tuple[str, str]]


def _words(listed: str) -> list[str]:
    return listed.split("|")


_SUBJECTS = _words("film|plot|actor|scene|ending|script|story|camera|music|cast|pace|tone|hero|villain|chase|finale")
_GOODS = _words(
    "phone|charger|kettle|lamp|blender|keyboard|backpack|router|speaker|jacket|heater|printer|drill|toaster"
)
_PLACES = _words("hotel|lobby|beach|museum|station|garden|harbour|market|terrace|bakery|chapel|castle|island|valley")
_PRAISE = _words("great|superb|lovely|brilliant|warm|charming|splendid|clever|moving|bright|elegant|rich|honest")
_BLAME = _words("awful|dull|boring|weak|cold|messy|clumsy|tired|grey|hollow|noisy|crude|stale")
_DEGREES = _words("very|really|rather|almost|quite|truly|too|fairly|so|somewhat")
_PEOPLE = _words("my sister|our neighbour|the old man|a friend of mine|the critic|her teacher|his cousin|the doctor")
_VERBS = _words("said|wrote|thought|claimed|noticed|insisted|agreed|admitted")
_WHENS = _words("in the morning|after a week|on the second day|last winter|by the end|at first|years ago|once again")
_ENDINGS = _words(".|.|.|!|...")
_TOPICS = {"screen": _SUBJECTS, "goods": _GOODS, "places": _PLACES}
_WEATHER = _words("rain|wind|fog|frost|thunder|hail|drizzle|sunshine|snow|cloud|mist|storm")
_REGIONS = _words("north|south|east|west|coast|hills|lowlands|estuary")


@dataclass(frozen=True, kw_only=True)
class World:
    """Real text in three disjoint parts, and text about something else."""

    real: Pairs = field(repr=False)
    holdout: Pairs = field(repr=False)
    fresh: Pairs = field(repr=False)
    other: Pairs = field(repr=False)
    size: int
    """Records of a synthetic set."""

    def corpora(self, synthetic: Pairs) -> Corpora:
        """Return what an evaluation of ``synthetic`` is given."""
        return Corpora(
            real=as_records(self.real), holdout=as_records(self.holdout), synthetic=as_records(synthetic)
        )  # fmt: skip


def make_world(level: str, *, seed: int) -> World:
    """Return real text: made up (quick) or the builtin ``vader`` (full).

    Raises:
        SafeSynthError: If the builtin cannot be fetched.
    """
    size = SIZES[level]
    pool, other = _vader(seed) if level == "full" else _made_up(size, seed)
    return World(
        holdout=pool[:size], fresh=pool[size : 4 * size], real=pool[4 * size :], other=other[:size], size=size
    )  # fmt: skip


def as_records(pairs: Sequence[tuple[str, str]]) -> Records:
    """Return the pairs as records."""
    texts, labels = tuple(text for text, _ in pairs), tuple(label for _, label in pairs)
    ids = tuple(record_hashes(texts, labels, None))
    return Records(texts=texts, labels=labels, record_ids=ids, label_set=tuple(sorted(set(labels))))


def fresh_real(world: World, rng: random.Random) -> Pairs:
    """Real text that is neither in T nor in H: nothing is wrong with it."""
    return rng.sample(world.fresh, world.size)


def label_collapse(world: World, rng: random.Random) -> Pairs:
    """Nine of ten records have one label; the texts fit their labels."""
    first = min({label for _, label in world.fresh})
    sides = [[p for p in world.fresh if (p[1] == first) == is_first] for is_first in (True, False)]
    many = min(round(COLLAPSED_SHARE * world.size), len(sides[0]))
    few = round(many * (1 - COLLAPSED_SHARE) / COLLAPSED_SHARE)
    return rng.sample(sides[0], many) + rng.sample(sides[1], few)


def label_noise(world: World, rng: random.Random) -> Pairs:
    """Three of ten labels are wrong."""
    names = sorted({label for _, label in world.fresh})
    chosen = fresh_real(world, rng)
    wrong = set(rng.sample(range(len(chosen)), round(NOISE * len(chosen))))
    return [
        (t, rng.choice([n for n in names if n != label]) if i in wrong else label)
        for i, (t, label) in enumerate(chosen)
    ]


def mode_collapse(world: World, rng: random.Random) -> Pairs:
    """A tenth of the texts, ten times each."""
    return rng.sample(world.fresh, world.size // COPIES) * COPIES


def word_shuffle(world: World, rng: random.Random) -> Pairs:
    """The words of each text in random order."""
    found = Pairs()
    for text, label in fresh_real(world, rng):
        words = text.split()
        rng.shuffle(words)
        found.append((" ".join(words), label))
    return found


def verbatim_copy(world: World, rng: random.Random) -> Pairs:
    """Training records as they are."""
    return rng.sample(world.real, world.size)


def truncation(world: World, rng: random.Random) -> Pairs:
    """The first six words of each text."""
    return [(" ".join(text.split()[:CUT_WORDS]), label) for text, label in fresh_real(world, rng)]


def other_domain(world: World, rng: random.Random) -> Pairs:
    """Text about something else, with labels of real text."""
    labels = [label for _, label in fresh_real(world, rng)]
    return [(text, label) for (text, _), label in zip(world.other, labels, strict=False)]


DEFECTS: dict[str, Callable[[World, random.Random], Pairs]] = {
    "fresh real text": fresh_real,
    "label collapse 90/10": label_collapse,
    "30% label noise": label_noise,
    "mode collapse": mode_collapse,
    "word shuffle": word_shuffle,
    "verbatim copy": verbatim_copy,
    "truncation to 6 words": truncation,
    "other-domain text": other_domain,
}


def _vader(seed: int) -> tuple[Pairs, Pairs]:
    split = load_split(DataConfig(builtin="vader"))
    pairs = [pair for part in (split.train, split.holdout) for pair in zip(part.texts, part.labels, strict=True)]
    random.Random(seed).shuffle(pairs)
    pool = [pair for pair in pairs if pair[1] != OTHER_DOMAIN]
    return pool[: 8 * SIZES["full"]], [pair for pair in pairs if pair[1] == OTHER_DOMAIN]


def made_up_pairs(count: int, rng: random.Random) -> Pairs:
    """Return distinct sentences of a small grammar with the topic as label."""
    pool = dict[str, str]()
    while len(pool) < count:  # distinct, so that disjoint parts share no text
        label = rng.choice(sorted(_TOPICS))
        pool.setdefault(_review(rng, label), label)
    return list(pool.items())


def _made_up(size: int, seed: int) -> tuple[Pairs, Pairs]:
    rng = random.Random(seed)
    return made_up_pairs(7 * size, rng), [(_forecast(rng), "weather") for _ in range(size)]


def _review(rng: random.Random, label: str) -> str:
    things, moods = _TOPICS[label], rng.choice([_PRAISE, _BLAME])
    parts = [f"the {rng.choice(things)} was {rng.choice(_DEGREES)} {rng.choice(moods)}"]
    parts += [_clause(rng, things, moods) for _ in range(rng.choice([0, 1, 1, 2]))]
    rng.shuffle(parts)
    text = rng.choice([", and ", " but ", "; "]).join(parts)
    return text[0].upper() + text[1:] + rng.choice(_ENDINGS)


def _clause(rng: random.Random, things: Sequence[str], moods: Sequence[str]) -> str:
    first, second = rng.sample(list(things), 2)
    mood, degree = rng.choice(list(moods)), rng.choice(_DEGREES)
    kinds = (
        f"{rng.choice(_PEOPLE)} {rng.choice(_VERBS)} that the {first} looked {mood}",
        f"{rng.choice(_WHENS)} the {first} and the {second} seemed {degree} {mood}",
        f"nobody {rng.choice(_VERBS)} that this {mood} {first} would spoil the {second}",
    )
    return rng.choice(kinds)


def _forecast(rng: random.Random) -> str:
    first, second = rng.sample(_WEATHER, 2)
    place, other = rng.sample(_REGIONS, 2)
    return (
        f"{first.capitalize()} spreading from the {place} towards the {other}, turning to {second} overnight with "
        f"gusts near {rng.randint(10, 90)} miles per hour; highs of {rng.randint(-5, 30)} degrees."
    )
