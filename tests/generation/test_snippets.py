"""Twenty-one common snippets that are not private, and the tests that would see each of them in this package.

A row names what people write and the tests that keep it out. The tests below guard what had none.
"""

import ast
import dataclasses
from pathlib import Path

import pytest

from safesynthdp.generation.predict_config import PredictConfig
from safesynthdp.generation.settings import SampleConfig
from safesynthdp.privacy.ledger_file import RULES
from safesynthdp.privacy.mechanisms import UniformMix
from safesynthdp.privacy.output_registry import CLASSES

TESTS = Path(__file__).parents[1]
DISTRIBUTIONS = "privacy/test_output_distributions.py"
PRICES = "privacy/test_output_prices.py"
DECODING = "generation/test_output_decoding.py"
PREDICT = "generation/test_predict.py"
CLIPPED = f"{DECODING}::test_a_record_scaled_a_thousand_times_moves_scores_within_the_range"
BROKEN = f"{DISTRIBUTIONS}::test_a_broken_draw_breaks_the_price"
DOUBLED = f"{PRICES}::test_doubling_tokens_or_texts_doubles_pure_epsilon_and_rho"
PUBLIC = f"{DECODING}::test_the_candidates_never_depend_on_private_logits"
MISSING = "privacy/test_output_vectors.py::test_bad_input_is_one_line_that_starts_with_the_flag"
REMOVED = f"{PREDICT}::test_removing_a_record_leaves_every_other_batch_byte_identical"
MIN = f"{PRICES}::test_min_needs_two_guarantees_on_one_output_never_two_accesses"
HERE = "generation/test_snippets.py"

CATALOGUE: dict[int, tuple[str, tuple[str, ...]]] = {
    1: ("logits += Laplace(1 / epsilon), nothing clipped", (CLIPPED, BROKEN, MISSING)),
    2: ("a temperature set from epsilon on unclipped logits", (CLIPPED, BROKEN, MISSING)),
    3: ("normalised by the batch's own deviation or largest, then noise", (BROKEN,)),
    4: ("noise first, clip afterwards", (BROKEN, CLIPPED)),
    5: ("one epsilon for a whole text, or for a whole data set", (DOUBLED,)),
    6: ("top-k or top-p of private logits, then noise", (PUBLIC, BROKEN)),
    7: ("noise on the private top-k alone", (PUBLIC, BROKEN)),
    8: ("the noisy vector released at the price of its argmax", (f"{HERE}::test_only_vectors_are_decoded_freely",)),
    9: ("top-p of noisy scores at the price of their argmax", (f"{HERE}::test_only_vectors_are_decoded_freely",)),
    10: (
        "sigma = sqrt(2 ln(1.25 / delta)) / epsilon above epsilon 1",
        (f"{PRICES}::test_the_classic_gaussian_scale_is_not_enough_above_epsilon_one",),
    ),
    11: ("noise on prompt embeddings", (f"{HERE}::test_no_mechanism_has_a_price_that_the_list_does_not_name",)),
    12: ("noise on counts of generated text", (f"{HERE}::test_no_mechanism_has_a_price_that_the_list_does_not_name",)),
    13: ("words replaced at ln((1 - p) / p)", (f"{HERE}::test_mixing_costs_more_with_more_words_and_longer_texts",)),
    14: ("dropout passes of one model as teachers", (MISSING,)),
    15: (
        "shards by order; the divisor is what is present",
        (
            "generation/test_partition.py::test_another_records_coming_or_going_moves_nobody",
            f"{DECODING}::test_the_divisor_is_the_flag_never_the_number_of_rows",
            REMOVED,
        ),
    ),
    16: ("a sensitivity that is assumed to be 1, or measured", (CLIPPED, BROKEN)),
    17: (
        "epsilon from the length that came out",
        (DOUBLED, f"{DECODING}::test_texts_end_at_the_end_token_or_at_the_charged_length"),
    ),
    18: (
        "a fixed seed",
        (
            f"{PREDICT}::test_two_runs_differ_and_seeded_ones_do_not",
            "generation/test_sample_output.py::"
            "test_two_runs_differ_whatever_their_seed_and_an_unsafe_seed_marks_the_ledger",
        ),
    ),
    19: (
        "epsilons of two accesses subtracted, averaged or multiplied",
        (f"{PRICES}::test_prediction_on_the_records_of_the_weights_composes", MIN),
    ),
    20: ("an attack that fails taken for a guarantee", (f"{HERE}::test_no_rule_of_the_ledger_reads_an_attack",)),
    21: ("drawn again until far from private records", (f"{HERE}::test_no_text_is_drawn_again_or_dropped",)),
}


def test_every_snippet_has_a_row() -> None:
    assert sorted(CATALOGUE) == list(range(1, 22))


@pytest.mark.parametrize("row", CATALOGUE)
def test_every_test_that_is_named_exists(row: int) -> None:
    for guard in CATALOGUE[row][1]:
        path, name = guard.split("::")
        tree = ast.parse((TESTS / path).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, guard


def test_only_vectors_are_decoded_freely() -> None:
    from safesynthdp.errors import ConfigError
    from safesynthdp.generation.output_config import VECTORS, OutputConfig, refuse_private_truncation

    numbers = {"softmax": {"clip": 1.0}, "laplace": {"clip": 1.0, "scale": 1.0}, "gaussian_l2": {"clip": 1.0}}
    for name in CLASSES:
        output = OutputConfig(
            mechanism=name,  # type: ignore[arg-type]
            public_top_k=None,
            **numbers.get(name, {}),  # type: ignore[arg-type]
        )
        if name in VECTORS:
            assert refuse_private_truncation(output, temperature=0.7, top_k=0, top_p=0.9).top_p == 0.9
            continue
        for given in ({"top_p": 0.9}, {"top_k": 5}, {"temperature": 0.7}):
            with pytest.raises(ConfigError, match="no epsilon pays for"):
                refuse_private_truncation(output, **({"temperature": 1.0, "top_k": 0, "top_p": 1.0} | given))
    assert set(VECTORS) == {"gaussian_l2", "laplace_probs", "gaussian_probs"}


def test_no_mechanism_has_a_price_that_the_list_does_not_name() -> None:
    assert set(CLASSES) == {"softmax", "laplace", "gaussian_l2", "laplace_probs", "gaussian_probs", "uniform_mix"}


def test_mixing_costs_more_with_more_words_and_longer_texts() -> None:
    base = UniformMix(shards=4, mixing=0.5, vocab_size=1000, tokens=10, adjacency="many")
    for more in ({"vocab_size": 50_000}, {"tokens": 20}, {"mixing": 0.9}):
        dearer = dataclasses.replace(base, **more)
        assert dearer.epsilon(delta=1e-6) > base.epsilon(delta=1e-6)


def test_no_rule_of_the_ledger_reads_an_attack() -> None:
    assert set(RULES) == {"compose", "min", "post_processing"}


@pytest.mark.parametrize("config", [SampleConfig, PredictConfig])
def test_no_text_is_drawn_again_or_dropped(config: type) -> None:
    """A filter would have to read texts; whoever adds one may compare synthetic texts with nothing private."""
    names = {field.name for field in dataclasses.fields(config)}
    assert not [name for name in names if any(word in name for word in ("filter", "reject", "dedup", "distance"))]
