"""Rows of fixed shape, the loop over tokens, and what private logits can and cannot reach."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from transformers import LlamaForCausalLM

from safesynthdp.errors import ConfigError
from safesynthdp.generation.decoding import DrawnRow
from safesynthdp.generation.output_config import OutputConfig
from safesynthdp.generation.output_decoding import Logits, Rule, Text, decode_texts
from safesynthdp.generation.padded import PaddedMemory
from safesynthdp.generation.shard_source import Prompts, Shapes, ShardSource
from safesynthdp.privacy.mechanisms import GaussianL2, GaussianProbs, Laplace, LaplaceProbs, Softmax, UniformMix
from safesynthdp.privacy.output_draws import Decoding, OutputKey, TokenStep, TokenStream, public_support
from safesynthdp.privacy.output_pricing import OutputMechanism

PROMPTS = [[5, 6, 7, 8, 9], [40], [11, 12, 13]]
KEY = OutputKey.from_unsafe_seed(1)
EOS = 1
SOFTMAX = Softmax(shards=3, clip=1.0, tokens=4, adjacency="null")


def stream(name: str = "text") -> TokenStream:
    return KEY.stream(name)


def test_padded_rows_say_what_each_says_alone(model: LlamaForCausalLM) -> None:
    memory = PaddedMemory(model)
    with torch.inference_mode():
        first = memory.start(PROMPTS, width=7)
        second = memory.append(torch.tensor([3, 4, 5]))
        for row, (prompt, token) in enumerate(zip(PROMPTS, (3, 4, 5), strict=True)):
            alone = model(input_ids=torch.tensor([[*prompt, token]])).logits[0]
            torch.testing.assert_close(first[row], alone[-2], atol=1e-9, rtol=1e-9)
            torch.testing.assert_close(second[row], alone[-1], atol=1e-9, rtol=1e-9)
        assert torch.equal(memory.restart(), first)
        assert torch.equal(memory.append(torch.tensor([3, 4, 5])), second)
        memory.append(torch.tensor([3, 4, 5]))
        assert torch.equal(memory.restart(), first)


def test_a_cache_that_cannot_go_back_reads_the_prompts_again(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safesynthdp.generation import caching

    monkeypatch.setattr(caching, "_roomy", lambda layer: layer)
    memory = PaddedMemory(model)
    with torch.inference_mode():
        first = memory.start(PROMPTS, width=7)
        second = memory.append(torch.tensor([3, 4, 5]))
        assert torch.equal(memory.restart(), first)
        assert torch.equal(memory.append(torch.tensor([3, 4, 5])), second)


def test_a_row_is_bit_identical_whatever_its_neighbours_hold(model: LlamaForCausalLM) -> None:
    for dtype in (torch.float32, torch.float64):
        twin: Any = copy.deepcopy(model)
        twin = twin.to(dtype)
        others = [[[9] * 7, PROMPTS[1], [200, 3]], [[1, 2], PROMPTS[1], [77] * 6]]
        found = []
        with torch.inference_mode():
            for rows in others:
                memory = PaddedMemory(twin)
                first = memory.start(rows, width=7)[1]
                found.append((first, memory.append(torch.tensor([8, 8, 8]))[1]))
        assert torch.equal(found[0][0], found[1][0])
        assert torch.equal(found[0][1], found[1][1])


def test_a_prompt_beyond_the_public_width_is_refused(model: LlamaForCausalLM) -> None:
    with pytest.raises(ConfigError, match="width=3"):
        PaddedMemory(model).start(PROMPTS, width=3)


class Fixed:
    """The same logits at every position."""

    can_shrink = False

    def __init__(self, public: Tensor | None, private: Sequence[Tensor]) -> None:
        self._logits = Logits(public_GV=public, private=private)

    def start(self) -> Logits:
        return self._logits

    def append(self, tokens_G: Tensor) -> Logits:
        return self._logits

    def select(self, kept_G: Tensor) -> None:
        raise AssertionError


def drawn(source: Fixed, rule: Rule, texts: int) -> list[DrawnRow]:
    found = list[DrawnRow]()
    decode_texts(
        source,
        [Text(number=i, stream=stream(str(i))) for i in range(texts)],
        rule=rule,
        on_step=lambda rows, _: found.extend(rows),
    )
    return sorted(found, key=lambda row: row.number)


def test_texts_end_at_the_end_token_or_at_the_charged_length() -> None:
    public = torch.tensor([[0.0, 0.2, 0.0, 0.0]] * 40)
    rule = Rule(mechanism=replace(SOFTMAX, tokens=6), end=EOS, tokens=6)
    rows = drawn(Fixed(public, [torch.zeros(3, 4)] * 40), rule, 40)
    assert [row.number for row in rows] == list(range(40))
    assert all(EOS not in row.tokens for row in rows)
    assert {row.is_truncated for row in rows} == {True, False}
    assert all(len(row.tokens) == 6 for row in rows if row.is_truncated)
    assert rule.mechanism.steps == 6  # type: ignore[union-attr]


VECTOR = Decoding()
P = np.array([[0.3, -1.0, 0.8, 2.0, -0.2], [2.0, 0.0, 0.1, -3.0, 0.5]])
PUBLIC = np.array([0.0, 0.5, -0.5, 1.0, 0.2])
MECHANISMS: dict[str, OutputMechanism] = {
    "softmax": Softmax(shards=2, clip=0.7, temperature=0.8, tokens=1, adjacency="many"),
    "laplace": Laplace(shards=2, clip=0.7, scale=0.6, tokens=1, adjacency="many"),
    "laplace softmax": Laplace(shards=2, clip=0.7, scale=0.6, temperature=0.5, tokens=1, adjacency="many"),
    "gaussian_l2": GaussianL2(shards=2, clip=0.7, scale=0.5, tokens=1, adjacency="many"),
    "laplace_probs": LaplaceProbs(shards=2, scale=0.1, tokens=1, adjacency="many"),
    "gaussian_probs": GaussianProbs(shards=2, scale=0.1, tokens=1, adjacency="many"),
    "uniform_mix": UniformMix(shards=2, mixing=0.4, vocab_size=5, tokens=1, adjacency="many"),
}


def frequencies(mechanism: OutputMechanism, draws: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    source = stream()
    counts = np.zeros(5, dtype=np.int64)
    for number in range(draws):
        counts[mechanism.draw(TokenStep(private_RK=P, public_K=PUBLIC, number=number, stream=source))] += 1
    return counts


def expected(name: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """The distribution by another route: numpy's generator and the definitions, a million draws where it is noise."""
    from safesynthdp.privacy.output_clipping import clipped_mean, clipped_mean_l2, mean_probabilities

    rng = np.random.default_rng(0)
    scores = clipped_mean(P, PUBLIC, clip=0.7, shards=2)
    weights: np.ndarray[tuple[int, ...], np.dtype[np.float64]]
    if name == "softmax":
        weights = np.exp(scores / 0.8)[None]
    elif name == "uniform_mix":
        weights = (0.4 * mean_probabilities(P, PUBLIC, shards=2) + 0.6 / 5)[None]
    elif name == "laplace":
        winners = (scores + rng.laplace(size=(10**6, 5)) * 0.6).argmax(axis=1)
        return np.bincount(winners, minlength=5) / 10**6
    elif name == "laplace softmax":
        weights = np.exp((scores + rng.laplace(size=(10**6, 5)) * 0.6) / 0.5)
    elif name == "gaussian_l2":
        scores = clipped_mean_l2(P, PUBLIC, clip=0.7, shards=2)
        weights = np.exp(scores + rng.normal(size=(10**6, 5)) * 0.5)
    else:
        noise = rng.laplace(size=(10**6, 5)) if name == "laplace_probs" else rng.normal(size=(10**6, 5))
        noisy = mean_probabilities(P, PUBLIC, shards=2) + 0.1 * noise
        weights = np.maximum(noisy, 0)
        nothing = ~weights.any(axis=1)
        weights[nothing, noisy[nothing].argmax(axis=1)] = 1
    shares: np.ndarray[tuple[int], np.dtype[np.float64]] = (weights / weights.sum(axis=1, keepdims=True)).mean(axis=0)
    return shares


@pytest.mark.parametrize("name", MECHANISMS)
def test_what_is_drawn_follows_the_distribution_that_is_priced(name: str) -> None:
    counts = frequencies(MECHANISMS[name], 8000)
    assert stats.chisquare(counts, expected(name) * counts.sum()).pvalue > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", MECHANISMS)
def test_a_million_draws_follow_the_distribution_that_is_priced(name: str) -> None:
    if name in ("softmax", "uniform_mix"):  # the others are known to 1e6 draws only
        counts = frequencies(MECHANISMS[name], 10**6)
        assert stats.chisquare(counts, expected(name) * counts.sum()).pvalue > 1e-4


def test_the_chi_square_test_would_see_another_distribution() -> None:
    counts = frequencies(MECHANISMS["softmax"], 8000)
    assert stats.chisquare(counts, expected("laplace") * counts.sum()).pvalue < 1e-6


@pytest.mark.parametrize("name", MECHANISMS)
def test_the_candidates_never_depend_on_private_logits(name: str) -> None:
    """Private logits are not even an argument; what is drawn stays inside whatever they say."""
    mechanism, rng = MECHANISMS[name], np.random.default_rng(0)
    public = rng.normal(size=5)
    top_k = None if name == "uniform_mix" else 2
    support = mechanism.support(public, end=4, top_k=top_k)
    rule = Rule(mechanism=mechanism, end=4, tokens=1, top_k=top_k)
    for number in range(60):
        private = torch.from_numpy(public + rng.normal(size=(2, 5)) * 1000)
        token = rule.draw(public, private, number=number, text=Text(number=0, stream=stream()))
        assert token in support


def test_the_support_is_the_public_top_k_with_its_slack_and_the_end() -> None:
    public = np.array([5.0, 4.0, 3.95, 3.0, -2000.0, 1.0])
    assert public_support(public, end=5, top_k=2, slack=0.1, temperature=1.0).tolist() == [0, 1, 2, 5]
    assert public_support(public, end=5, top_k=2, slack=0.0, temperature=1.0).tolist() == [0, 1, 5]
    assert public_support(public, end=4, top_k=2, slack=0.0, temperature=1.0).tolist() == [0, 1]
    assert public_support(public, end=0, top_k=None, slack=0.0, temperature=1.0).tolist() == [0, 1, 2, 3, 5]
    assert SOFTMAX.support(public, end=5, top_k=2).tolist() == [0, 1, 2, 5]  # slack 2C/S


def test_a_record_scaled_a_thousand_times_moves_scores_within_the_range() -> None:
    from safesynthdp.privacy.output_clipping import clipped_mean

    rng = np.random.default_rng(0)
    for _ in range(200):
        public, rows = rng.normal(size=6), rng.normal(size=(3, 6))
        loud = rows.copy()
        loud[0] *= 1000
        moved = clipped_mean(loud, public, clip=1.0, shards=3) - clipped_mean(rows, public, clip=1.0, shards=3)
        assert np.abs(moved).max() <= 2 / 3 + 1e-12


def test_a_row_that_is_not_finite_adds_nothing_and_stops_nothing() -> None:
    broken = np.vstack([P, np.full((1, 5), np.nan)])
    for mechanism in (
        SOFTMAX,
        replace(MECHANISMS["gaussian_l2"], shards=3),
        replace(MECHANISMS["laplace_probs"], shards=3),
    ):
        for recentre in (False, True):
            step = TokenStep(private_RK=broken, public_K=PUBLIC, number=0, stream=stream(), recentre=recentre)
            clean = replace(step, private_RK=P)
            assert mechanism.draw(step) == mechanism.draw(clean)
    infinite = P.copy()
    infinite[0, 2] = np.inf
    assert np.isfinite(SOFTMAX.probabilities(infinite, PUBLIC)).all()
    assert np.isfinite(SOFTMAX.probabilities(np.zeros((0, 5)), PUBLIC)).all()
    np.testing.assert_allclose(
        SOFTMAX.probabilities(np.zeros((0, 5)), PUBLIC), np.exp(PUBLIC) / np.exp(PUBLIC).sum(), rtol=1e-12
    )


def test_the_divisor_is_the_flag_never_the_number_of_rows() -> None:
    from safesynthdp.privacy.output_clipping import clipped_mean

    for count in (0, 1, 2, 5):
        rows = np.tile(PUBLIC + 9.0, (count, 1))
        np.testing.assert_allclose(clipped_mean(rows, PUBLIC, clip=1.0, shards=2), PUBLIC + count / 2)


def test_a_clip_under_which_tokens_could_underflow_is_refused() -> None:
    with pytest.raises(ConfigError, match="clip=60"):
        Softmax(shards=2, clip=60.0, tokens=1, adjacency="null").probabilities(P, PUBLIC)
    with pytest.raises(ConfigError, match=r"output\.clip=60"):  # before a model is read
        OutputConfig(mechanism="softmax", clip=60.0, temperature=1.0).priced(shards=2, tokens=1, adjacency="null")


def test_streams_differ_by_name_step_and_key_and_a_repr_shows_no_key() -> None:
    fresh = OutputKey.fresh()
    drawn = {stream(name).uniform(step) for name in ("a", "b") for step in (0, 1)}
    assert len(drawn) == 4
    assert fresh.stream("a").uniform(0) not in drawn
    assert not fresh.seeded
    assert OutputKey.from_unsafe_seed(3).seeded
    assert fresh.secret.hex() not in repr(fresh)
    assert "key" not in repr(fresh.stream("a")).lower().removeprefix("tokenstream")
    laplace, normal = stream().laplace(0, 20000), stream().normal(0, 20000)
    assert stats.kstest(laplace, "laplace").pvalue > 1e-4
    assert stats.kstest(normal, "norm").pvalue > 1e-4


def shard_texts(model: LlamaForCausalLM, rows: list[list[tuple[int, ...] | None]], **shapes: int) -> list[DrawnRow]:
    """Three batches; what the middle one holds is given."""
    others: list[tuple[int, ...] | None] = [(30, 31), (32,), (33, 34, 35)]
    texts = [Prompts(rows=[*others], public=(50, 51)), *(Prompts(rows=r, public=(50, 52)) for r in rows)]
    source = ShardSource(
        model, texts, shapes=Shapes(rows_per_call=shapes.get("rows_per_call", 2), width=6, public_width=3)
    )
    found = list[DrawnRow]()
    rule = Rule(mechanism=replace(SOFTMAX, tokens=9, clip=3.0), end=EOS, tokens=9, top_k=40)
    for _ in range(2):
        decode_texts(
            source,
            [Text(number=i, stream=stream(f"batch/{i}")) for i in range(len(texts))],
            rule=rule,
            on_step=lambda drawn, _: found.extend(drawn),
        )
    assert found[: len(texts)] == found[len(texts) :]  # the same randomness after going back to the prompts
    return sorted(found[: len(texts)], key=lambda row: row.number)


def test_what_one_batch_holds_changes_no_token_of_another(model: LlamaForCausalLM) -> None:
    twin: Any = copy.deepcopy(model)
    single = twin.float()
    same: list[tuple[int, ...] | None] = [(60,), (61, 62)]
    full = shard_texts(single, [[(70, 71), (72,), (73,), (74, 75)], same])
    for other in ([(70, 71), (72,), (73,)], [], [(9, 9, 9, 9, 9, 9)], [None, (72,)]):
        changed = shard_texts(single, [list(other), same])
        assert changed[0] == full[0]
        assert changed[2] == full[2]
        assert changed[1] != full[1]


def test_the_number_of_rows_in_a_call_is_a_matter_of_speed(model: LlamaForCausalLM) -> None:
    rows: list[tuple[int, ...] | None] = [(70, 71), None, (73,)]
    assert shard_texts(model, [rows], rows_per_call=1) == shard_texts(model, [rows], rows_per_call=5)


def test_rows_without_a_record_never_reach_the_draw(model: LlamaForCausalLM) -> None:
    texts = [Prompts(rows=[(70, 71), None, (73,)], public=(50,)), Prompts(rows=[], public=(50,))]
    source = ShardSource(model, texts, shapes=Shapes(rows_per_call=2, width=6, public_width=3))
    with torch.inference_mode():
        for logits in (source.start(), source.append(torch.tensor([5, 6]))):
            assert [len(rows) for rows in logits.private] == [2, 0]
            assert logits.public_GV is not None
            assert logits.public_GV.shape == (2, 259)
        whole = PaddedMemory(model).start([(73,)], width=6)
        torch.testing.assert_close(source.start().private[0][1], whole[0], atol=1e-9, rtol=1e-9)
