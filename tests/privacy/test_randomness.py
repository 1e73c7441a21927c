"""Keys stay secret, and no two draws share a bit of keystream."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from safesynthdp.errors import ConfigError, LedgerMismatch
from safesynthdp.privacy import storage
from safesynthdp.privacy.randomness import (
    MAX_STEP,
    MAX_TENSOR,
    MAX_WORDS,
    EntropySource,
    StepKeys,
    derive_key,
    normals,
    words,
)

KEY = bytes(range(32))
GOLDEN = ["40529d8307fa375d", "93426b1ca2ca2493", "2caf1affbaa36e6b"]


def test_words_are_those_of_a_fixed_cipher() -> None:
    drawn = words(KEY, domain="a", step=1, tensor=2, count=3, offset=1)
    assert [f"{word:016x}" for word in drawn] == GOLDEN


@given(offset=st.integers(0, 300), count=st.integers(0, 300), step=st.integers(0, MAX_STEP - 1))
@settings(max_examples=50)
def test_a_shard_draws_exactly_its_part(offset: int, count: int, step: int) -> None:
    whole = words(KEY, domain="a", step=step, tensor=3, count=offset + count)
    part = words(KEY, domain="a", step=step, tensor=3, count=count, offset=offset)
    assert np.array_equal(whole[offset:], part)
    noise = normals(KEY, domain="a", step=step, tensor=3, count=offset + count)
    assert np.array_equal(noise[offset:], normals(KEY, domain="a", step=step, tensor=3, count=count, offset=offset))


def test_no_word_repeats_over_domains_steps_tensors_keys_and_incarnations() -> None:
    keys = StepKeys.from_unsafe_seed(7)
    again, other = keys.derive(1), keys.derive(2)
    secrets = {keys.sampling, keys.noise, keys.histogram, again.sampling, again.noise, other.sampling, other.noise}
    assert len(secrets) == 7
    seen = [
        word
        for key in secrets
        for domain in ("a", "b")
        for step in (0, 1, 2**39)
        for tensor in (0, 1, 2**31)
        for word in words(key, domain=domain, step=step, tensor=tensor, count=50).tolist()
    ]
    assert len(set(seen)) == len(seen)


def test_the_last_block_of_a_tensor_does_not_run_into_the_next_one() -> None:
    last = words(KEY, domain="a", step=0, tensor=0, count=2, offset=MAX_WORDS - 2)
    first = words(KEY, domain="a", step=0, tensor=1, count=2)
    assert set(last.tolist()).isdisjoint(first.tolist())


@pytest.mark.parametrize(
    "place",
    [
        {"step": MAX_STEP}, {"step": -1}, {"tensor": MAX_TENSOR}, {"tensor": -1}, {"offset": -1},
        {"offset": MAX_WORDS - 1, "count": 2}, {"count": -1},
    ],
)  # fmt: skip
def test_places_that_would_repeat_noise_are_refused(place: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        words(KEY, **{"domain": "a", "step": 0, "tensor": 0, "count": 1, **place})  # type: ignore[arg-type]


def test_normals_are_normal_symmetric_and_finite() -> None:
    drawn = normals(KEY, domain="n", step=0, tensor=0, count=200_000)
    assert np.isfinite(drawn).all()
    assert stats.kstest(drawn, "norm").pvalue > 1e-3
    assert abs(stats.kurtosis(drawn)) < 0.06


def test_every_normal_is_the_quantile_of_its_own_word_far_into_the_tails(monkeypatch: pytest.MonkeyPatch) -> None:
    tails = (np.arange(2_000, dtype=np.uint64) ** 3) << np.uint64(12)
    drawn = np.concatenate([words(KEY, domain="n", step=0, tensor=0, count=300_000), tails, tails + np.uint64(1)])
    monkeypatch.setattr("safesynthdp.privacy.randomness.words", lambda *_, offset, count, **__: drawn[offset:][:count])
    lower = special.ndtri(((drawn >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-53)
    wanted = np.where(drawn & np.uint64(1), lower, -lower)
    found = normals(KEY, domain="n", step=0, tensor=0, count=len(drawn))
    np.testing.assert_allclose(found, wanted, rtol=1e-14)


def test_a_large_draw_is_the_same_in_pieces() -> None:
    whole = normals(KEY, domain="n", step=0, tensor=0, count=700_001)
    pieces = [normals(KEY, domain="n", step=0, tensor=0, count=233_333, offset=o) for o in (0, 233_333, 466_666)]
    assert np.array_equal(whole[:699_999], np.concatenate(pieces))


def test_the_extreme_words_give_finite_normals(monkeypatch: pytest.MonkeyPatch) -> None:
    edges = np.array([0, 1, 2**64 - 2, 2**64 - 1], dtype=np.uint64)
    monkeypatch.setattr("safesynthdp.privacy.randomness.words", lambda *_, **__: edges)
    far, near = (
        normals(KEY, domain="n", step=0, tensor=0, count=4)[[0, 1]],
        normals(KEY, domain="n", step=0, tensor=0, count=4)[[2, 3]],
    )
    assert far.tolist() == [-far[1], far[1]]
    assert 8.2 < abs(far[0]) < 8.4
    assert np.all(np.abs(near) < 1e-15)


def test_keys_are_never_shown() -> None:
    keys = StepKeys.from_unsafe_seed(1)
    for shown in (repr(keys), str(keys), f"{keys}", repr(EntropySource(keys.noise))):
        assert keys.sampling.hex() not in shown
        assert str(keys.sampling) not in shown
        assert str(keys.noise) not in shown
        assert keys.noise.hex() not in shown
    with pytest.raises(LedgerMismatch) as caught:
        StepKeys.from_json({**keys.to_json(), "noise": "zz" + keys.noise.hex()})
    assert keys.noise.hex() not in str(caught.value)


def test_keys_survive_a_private_file(tmp_path: Path) -> None:
    keys = StepKeys.fresh()
    storage.write_json(tmp_path / "keys.json", keys.to_json(), private=True)
    assert (tmp_path / "keys.json").stat().st_mode & 0o777 == 0o600
    assert StepKeys.from_json(json.loads((tmp_path / "keys.json").read_text())) == keys


@pytest.mark.parametrize("edit", [{"seeded": "no"}, {"noise": 3}, {"noise": "00"}, {"sampling": None}])
def test_damaged_keys_are_refused(edit: dict[str, object]) -> None:
    with pytest.raises(LedgerMismatch):
        StepKeys.from_json({**StepKeys.fresh().to_json(), **edit})


def test_equal_keys_for_masks_and_noise_are_refused() -> None:
    with pytest.raises(LedgerMismatch):
        StepKeys(sampling=KEY, noise=KEY, seeded=False)


def test_fresh_keys_differ_and_seeded_keys_say_so() -> None:
    assert StepKeys.fresh() != StepKeys.fresh()
    assert not StepKeys.fresh().seeded
    assert StepKeys.from_unsafe_seed(5) == StepKeys.from_unsafe_seed(5)
    assert StepKeys.from_unsafe_seed(5).seeded
    assert StepKeys.from_unsafe_seed(5).derive(3).seeded
    assert StepKeys.from_unsafe_seed(5).noise != StepKeys.from_unsafe_seed(-5).noise
    with pytest.raises(ConfigError):
        StepKeys.from_unsafe_seed(True)


def test_a_label_and_a_key_both_change_a_derived_key() -> None:
    assert len({derive_key(KEY, "a"), derive_key(KEY, "b"), derive_key(KEY[::-1], "a"), KEY}) == 4


def test_an_entropy_source_is_uniform_and_repeats_only_with_its_key() -> None:
    first, second, os_source = EntropySource.keyed(KEY), EntropySource.keyed(KEY), EntropySource()
    assert [first.bits(70) for _ in range(500)] == [second.bits(70) for _ in range(500)]
    assert [os_source.bits(70) for _ in range(3)] != [os_source.bits(70) for _ in range(3)]
    counts = np.bincount([first.below(5) for _ in range(5000)], minlength=5)
    assert len(counts) == 5
    assert stats.chisquare(counts).pvalue > 1e-3
    assert first.below(1) == 0
    assert max(os_source.bits(3) for _ in range(200)) == 7


def test_an_entropy_source_of_a_seed_is_marked() -> None:
    assert EntropySource.from_unsafe_seed(3).seeded
    assert not EntropySource().seeded
    one, two = EntropySource.from_unsafe_seed(3, label="a"), EntropySource.from_unsafe_seed(3, label="b")
    assert one.bits(64) != two.bits(64)
    with pytest.raises(LedgerMismatch):
        EntropySource.keyed(b"short")
    with pytest.raises(ValueError, match="bound=0"):
        EntropySource().below(0)
