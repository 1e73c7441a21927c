"""Output mechanisms by name: from flags, from a ledger entry, and the one that claims nothing.

Here: which numbers a mechanism takes. Elsewhere: the mechanisms (output_mechanisms.py, output_gaussian.py).
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from safesynthdp.errors import ConfigError, LedgerMismatch
from safesynthdp.privacy import checks
from safesynthdp.privacy.entries import built, known_keys
from safesynthdp.privacy.output_draws import TokenStep, softmax
from safesynthdp.privacy.output_gaussian import GaussianL2, GaussianProbs
from safesynthdp.privacy.output_mechanisms import Laplace, LaplaceProbs, Softmax, UniformMix
from safesynthdp.privacy.output_pricing import OutputMechanism


@dataclass(frozen=True, kw_only=True)
class Heuristic:
    """Noise on the next-token frequencies of one unprotected prompt, in the spirit of the paper: NO guarantee.

    Nothing bounds what a record does to the frequencies, so no scale gives an epsilon. Kept to compare with.
    """

    noise: Literal["laplace", "gaussian"]
    """Distribution of the noise."""
    scale: float
    """Laplace scale or Gaussian standard deviation, added to each probability."""
    name: ClassVar[str] = "heuristic"

    def __post_init__(self) -> None:
        if self.noise not in ("laplace", "gaussian"):
            raise ConfigError(f"noise={self.noise} is not one of laplace, gaussian")
        checks.positive("scale", self.scale)

    def epsilon(self, *, delta: float) -> None:
        """None: no formal guarantee."""
        del delta

    def draw(self, step: TokenStep) -> int:
        """Return the position of the next token; there is one row, and no public model is looked at."""
        frequencies_K = softmax(step.private_RK[0])
        noise_K = (step.laplace if self.noise == "laplace" else step.normal)(len(frequencies_K))
        return step.decoding.draw_probabilities(frequencies_K + self.scale * noise_K, step.uniform())

    def to_entry(self) -> dict[str, Any]:
        """Return its numbers."""
        return {"mechanism": self.name, **dataclasses.asdict(self)}


CLASSES: dict[str, type[OutputMechanism]] = {
    cls.name: cls for cls in (Softmax, Laplace, GaussianL2, LaplaceProbs, GaussianProbs, UniformMix)
}


def output_mechanism(mechanism: str, **values: Any) -> OutputMechanism:
    """Return the mechanism of this name; None stands for a flag that was not given.

    Raises:
        ConfigError: If a number is missing or out of range, or its formula ignores it.
    """
    if mechanism not in CLASSES:
        raise ConfigError(f"mechanism={mechanism} is not one of {', '.join(CLASSES)}")
    given = {key: value for key, value in values.items() if value is not None}
    known = {field.name: field for field in dataclasses.fields(CLASSES[mechanism])}
    if foreign := [key for key in given if key not in known]:
        raise ConfigError(f"{foreign[0]}={given[foreign[0]]}: mechanism={mechanism} has no such number; leave it out")
    needed = [name for name, field in known.items() if field.default is dataclasses.MISSING and name not in given]
    if needed:
        raise ConfigError(f"{needed[0]} is missing; mechanism={mechanism} bounds nothing without it")
    return CLASSES[mechanism](**given)


def output_mechanism_from_entry(entry: Mapping[str, Any]) -> OutputMechanism:
    """Read what ``to_entry`` wrote.

    Raises:
        LedgerMismatch: If a key is missing, unknown or out of range.
    """
    cls = CLASSES.get(str(entry.get("mechanism")))
    if cls is None:
        raise LedgerMismatch(
            f"ledger: mechanism={entry.get('mechanism')} cannot be computed by this version; restore the ledger, or "
            "use the version that wrote it"
        )
    fields = dataclasses.fields(cls)
    required = {"mechanism", *(field.name for field in fields if field.default is dataclasses.MISSING)}
    optional = {field.name for field in fields} - required
    return built(output_mechanism, known_keys(entry, required=required, optional=optional))
