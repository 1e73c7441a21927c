"""The attacks of a pool by name: what each needs, and its score of every record.

Here: the table of attacks, on what an attacker of one target sees. Elsewhere: their arithmetic
(reference_attacks.py, signals.py), who is a reference of whom (pool_scores.py). Shapes: K references, R records.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from safesynthdp.attacks import reference_attacks as ref
from safesynthdp.attacks.signals import error_zone_score

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class View:
    """What an attacker of one target sees."""

    target: Callable[[str], Floats]
    """Signal -> [R] of the target."""
    references: Callable[[str], Floats]
    """Signal -> [K, R] of its references."""
    base: Callable[[str], Floats]
    """Signal -> [R] of the untuned model or the reference corpus."""
    is_in_KR: Bools
    """Which references had the record."""
    zlib_bytes: Floats | None
    population: NDArray[np.intp]
    """Columns of the records that no model was trained on."""
    variance: ref.Variance

    def mean(self, of: Callable[[str], Floats]) -> Floats:
        """Return ``lp / n``."""
        return of("lp_sum") / of("num_scored")


@dataclass(frozen=True, kw_only=True)
class Attack:
    """One attack: what it needs, and its score."""

    channel: str
    formula: str
    """For params_hash: scores of another formula are other scores."""
    signals: tuple[str, ...]
    """Of the target, and of the references and base where there are any."""
    score: Callable[[View], Floats]
    needs_references: bool = False
    needs_base: bool = False
    needs_zlib: bool = False
    needs_population: bool = False


def _log_ratio(view: View, signal: str) -> Floats:
    return ref.log_rmia(view.target(signal), view.references(signal))


def _calibrated(view: View) -> Floats:
    ratios = _log_ratio(view, "lp_sum")
    return ref.calibrated(ratios, ratios[view.population])


def _text_attacks(order: int) -> dict[str, Attack]:
    signal = f"ngram{order}_lp"
    return {
        f"ngram{order}_domias": Attack(
            channel="text",
            formula="s_S - s_reference",
            signals=(signal,),
            needs_base=True,
            score=lambda view: view.target(signal) - view.base(signal),
        ),
        f"ngram{order}_rmia": Attack(
            channel="text",
            formula="s_S - logmeanexp s_Sk",
            signals=(signal,),
            needs_references=True,
            score=lambda view: _log_ratio(view, signal),
        ),
    }


_LP, _N = "lp_sum", "num_scored"
_LOSS = (_LP, _N)
ATTACKS: Mapping[str, Attack] = {
    "loss": Attack(channel="model", formula="lp/n", signals=_LOSS, score=lambda v: v.mean(v.target)),
    "zlib": Attack(
        channel="model",
        formula="(lp/n)/zlib_bytes",
        signals=_LOSS,
        needs_zlib=True,
        score=lambda v: v.mean(v.target) / (v.zlib_bytes if v.zlib_bytes is not None else np.nan),
    ),
    "mink_20": Attack(channel="model", formula="mink 0.2", signals=("mink_20",), score=lambda v: v.target("mink_20")),
    "minkpp_20": Attack(
        channel="model", formula="mink++ 0.2", signals=("minkpp_20",), score=lambda v: v.target("minkpp_20")
    ),
    "ref": Attack(
        channel="model",
        formula="lp/n - lp_base/n",
        signals=_LOSS,
        needs_base=True,
        score=lambda v: v.mean(v.target) - v.mean(v.base),
    ),
    "ez": Attack(
        channel="model",
        formula="log(P+.1) - log(N+.1)",
        signals=("ez_pos", "ez_neg"),
        score=lambda v: error_zone_score(v.target("ez_pos"), v.target("ez_neg")),
    ),
    "lira": Attack(
        channel="model",
        formula="log N(in) - log N(out)",
        signals=_LOSS,
        needs_references=True,
        score=lambda v: ref.lira(v.mean(v.target), v.mean(v.references), v.is_in_KR, variance=v.variance),
    ),
    "lira_offline": Attack(
        channel="model",
        formula="log Phi((t - m_out)/sd)",
        signals=_LOSS,
        needs_references=True,
        score=lambda v: ref.lira_offline(v.mean(v.target), v.mean(v.references), v.is_in_KR, variance=v.variance),
    ),
    "t_mid": Attack(
        channel="model",
        formula="t - (m_in + m_out)/2",
        signals=_LOSS,
        needs_references=True,
        score=lambda v: ref.t_mid(v.mean(v.target), v.mean(v.references), v.is_in_KR),
    ),
    "rmia": Attack(
        channel="model",
        formula="lp - logmeanexp lp_refs",
        signals=(_LP,),
        needs_references=True,
        score=lambda v: _log_ratio(v, _LP),
    ),
    "rmia_offline": Attack(
        channel="model",
        formula="lp - logmeanexp lp_out",
        signals=(_LP,),
        needs_references=True,
        score=lambda v: ref.log_rmia(v.target(_LP), v.references(_LP), is_used_KR=~v.is_in_KR),
    ),
    "rmia_calibrated": Attack(
        channel="model",
        formula="share of z with r(x) - r(z) > 0",
        signals=(_LP,),
        needs_references=True,
        needs_population=True,
        score=_calibrated,
    ),
    **_text_attacks(2),
    **_text_attacks(3),
    "match_8": Attack(
        channel="text",
        formula="shares 8 words in a row with S and not with the reference",
        signals=("match_8",),
        score=lambda v: v.target("match_8"),
    ),
    "embed_nn": Attack(
        channel="text", formula="largest cosine", signals=("embed_nn",), score=lambda v: v.target("embed_nn")
    ),
}
EXPOSURE_ATTACK = "ngram2_exposure"
"""Not of signals: canaries among fresh candidates (canary_exposure.py). A test of no leakage, so without a verdict."""
MATCH_ATTACK = "match_8"
"""It shares a long run of words with the corpus: a test of no leakage too."""
STORED_BESIDE = ("rmia_calibrated",)
"""Scores that order records as another attack does, with more ties: no verdict, so no share of alpha."""
NO_VERDICT = (MATCH_ATTACK, EXPOSURE_ATTACK, *STORED_BESIDE)
REFUSED = {
    "rmia_linear": "its constant ((1+a)p + 1-a)/2 swamps the probability of a text and leaves the loss attack; use rmia"
}
