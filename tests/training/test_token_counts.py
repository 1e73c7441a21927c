"""The token counts of a run: what one record can move, what is written, and that it is paid for."""

import csv
import dataclasses
import json
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from safesynthdp.cli import run as run_door
from safesynthdp.errors import ConfigError, LedgerMismatch
from safesynthdp.privacy.ledger import Ledger, recompute_all
from safesynthdp.runs import TOKENS
from safesynthdp.training.command import main
from safesynthdp.training.config import PrivacyConfig
from safesynthdp.training.examples import Example
from safesynthdp.training.token_counts import token_table
from safesynthdp.training.token_file import TokenFile
from safesynthdp.training.units import Units
from safesynthdp.training.word_columns import LENGTHS, WordColumns

LABELS = ("bad", "good")
V = 12
Arguments = Callable[..., list[str]]
a_text = st.lists(st.integers(0, V - 1), min_size=1, max_size=30)
a_record = st.tuples(a_text, st.sampled_from(LABELS))


WORDS = WordColumns(num_tokens=V, num_buckets=16, begins_V=np.arange(V) > 4, ends_V=np.arange(V) > 6)
WHOLE = dataclasses.replace(WORDS, num_lengths=8, end_token=1)
some_columns = st.sampled_from([WordColumns.plain(V), WORDS, WHOLE])


def table(
    records: list[tuple[list[int], str]],
    members: tuple[tuple[int, ...], ...] | None = None,
    columns: WordColumns = WHOLE,
) -> Any:
    examples = [
        Example(input_ids=(0, 3, *ids), num_prompt_tokens=2, is_truncated=len(ids) % 2 == 0) for ids, _ in records
    ]
    units = Units(members=members or tuple((i,) for i in range(len(records))))
    return token_table(examples, [label for _, label in records], label_set=LABELS, columns=columns, units=units)


@settings(max_examples=100)
@given(records=st.lists(a_record, max_size=6), more=a_record, columns=some_columns)
def test_one_record_more_moves_the_table_by_norm_one(
    records: list[tuple[list[int], str]], more: tuple[list[int], str], columns: WordColumns
) -> None:
    moved = np.linalg.norm(table([*records, more], columns=columns) - table(records, columns=columns))
    assert moved == pytest.approx(1.0, abs=1e-9)


@settings(max_examples=100)
@given(records=st.lists(a_record, max_size=4), old=a_record, new=a_record)
def test_one_record_replaced_moves_it_by_at_most_root_two(
    records: list[tuple[list[int], str]], old: tuple[list[int], str], new: tuple[list[int], str]
) -> None:
    assert np.linalg.norm(table([*records, new]) - table([*records, old])) <= math.sqrt(2) + 1e-9


@settings(max_examples=100)
@given(records=st.lists(a_record, min_size=1, max_size=8), theirs=st.lists(a_record, min_size=1, max_size=8))
def test_all_records_of_a_user_together_move_it_by_at_most_one(
    records: list[tuple[list[int], str]], theirs: list[tuple[list[int], str]]
) -> None:
    others = tuple((i,) for i in range(len(records)))
    user = tuple(range(len(records), len(records) + len(theirs)))
    with_user = table([*records, *theirs], (*others, user))
    assert np.linalg.norm(with_user - table(records, others)) <= 1 + 1e-9


def test_the_prompt_does_not_count_and_the_end_of_text_does() -> None:
    found = table([([5, 5, 1], "good")], columns=WordColumns.plain(V))
    assert found[0].sum() == 0
    weighted = 2 * WORDS.weight_C[5], WORDS.weight_C[1]
    assert found[1, 5] == pytest.approx(weighted[0] / math.hypot(*weighted))
    assert found[1, 1] == pytest.approx(weighted[1] / math.hypot(*weighted))
    assert found[1, [0, 3]].sum() == 0


@pytest.fixture
def arguments(tmp_path: Path) -> Arguments:
    """Return a maker of command lines for a tiny run whose labels use different words."""
    path = tmp_path / "records.csv"
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["text", "label"])
        writer.writerows([("zzzz", "qqqq")[i % 2] * 8 + str(i), ("good", "bad")[i % 2]] for i in range(90))

    def build(**changes: Any) -> list[str]:
        values = {
            "model.from_scratch.num_hidden_layers": 1,
            "model.from_scratch.hidden_size": 16,
            "model.from_scratch.num_attention_heads": 2,
            "data.train_file": path,
            "data.labels": '["good", "bad"]',
            "data.max_length": 48,
            "privacy.target_epsilon": 8,
            "privacy.target_delta": 1e-3,
            "privacy.accountant": "rdp",
            "privacy.token_histogram_share": 0.5,
            "train.expected_batch_size": 8,
            "train.max_steps": 4,
            "train.save_steps": 2,
            "output_dir": tmp_path / "run",
        } | {key.replace("__", "."): value for key, value in changes.items()}
        return [word for key, value in values.items() if value is not None for word in (f"--{key}", str(value))]

    return build


def test_a_run_pays_for_its_token_counts_within_its_target(tmp_path: Path, arguments: Arguments) -> None:
    assert run_door(main, arguments()) == 0
    ledger = Ledger.read(tmp_path / "run" / "ledger.json")
    noise = ledger.entry("token_histogram").mechanism["noise_multiplier"]
    assert {release.artifact for release in ledger.releases} == {"weights", "label_histogram", "token_histogram"}
    for release, again in recompute_all(ledger):
        assert set(release.entries) == {"dpsgd", "label_histogram", "token_histogram"}
        assert again is not None
        assert release.epsilon is not None
        assert release.epsilon >= again * (1 - 1e-9)
        assert 7.8 <= release.epsilon <= 8
    path = tmp_path / "run" / "token_histogram.safetensors"
    found = TokenFile.read(path)
    assert path.stat().st_mode & 0o077 == 0, "for the owner alone, until somebody releases it"
    assert (found.source, found.noise_std, found.labels) == ("gaussian", noise, ("good", "bad"))
    assert found.sums_LC.shape == (2, 259 + 1024 + LENGTHS)
    assert found.sums_LC.max() > 5 * noise, "what all records of a label share stands out of the noise"
    assert found.sums_LC.std() > 0.8 * noise, "every cell has noise, those of no record too"


def test_words_are_counted_in_buckets_at_the_same_price(
    tmp_path: Path, arguments: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = {"privacy__token_histogram_word_buckets": 0, "output_dir": tmp_path / "alone"}
    assert run_door(main, arguments(**alone)) == 0
    assert run_door(main, arguments()) == 0
    words, letters = (TokenFile.read(tmp_path / folder / TOKENS) for folder in ("run", "alone"))
    assert (words.word_buckets, letters.word_buckets) == (1024, 0)
    assert words.sums_LC[:, 259:].max() > 5 * words.noise_std, "most letters stand inside words"
    ledgers = [Ledger.read(tmp_path / folder / "ledger.json") for folder in ("run", "alone")]
    assert ledgers[0].entry("token_histogram").mechanism == ledgers[1].entry("token_histogram").mechanism
    few = {"privacy__token_histogram_word_buckets": 100, "output_dir": tmp_path / "few"}
    assert run_door(main, arguments(**few)) == 2
    assert "token_histogram_word_buckets=100 is below" in capsys.readouterr().err
    assert not (tmp_path / "few" / "ledger.json").exists(), "refused before any record was counted"


def test_less_noise_for_the_counts_leaves_more_for_the_steps(tmp_path: Path, arguments: Arguments) -> None:
    noises = []
    for number, share in enumerate((0.8, 0.2, None)):
        folder = tmp_path / f"run{number}"
        assert run_door(main, arguments(privacy__token_histogram_share=share, output_dir=folder)) == 0
        ledger = Ledger.read(folder / "ledger.json")
        noises.append(ledger.entry("dpsgd").mechanism["noise_multiplier"])
        assert (folder / TOKENS).is_file() == ledger.has("token_histogram") == (share is not None)
    assert noises[0] > noises[1] > noises[2]


def test_without_privacy_the_sums_are_exact_and_nothing_is_claimed(tmp_path: Path, arguments: Arguments) -> None:
    changes = {"privacy__mode": "none", "privacy__target_epsilon": None}
    assert run_door(main, arguments(**changes)) == 0
    found = TokenFile.read(tmp_path / "run" / TOKENS)
    assert (found.source, found.noise_std) == ("exact", 0.0)
    assert found.sums_LC.min() == 0
    ledger = Ledger.read(tmp_path / "run" / "ledger.json")
    assert [entry.kind for entry in ledger.entries] == ["none"]
    assert all(release.epsilon is None for release in ledger.releases)


def test_counts_that_are_gone_from_a_run_that_trained_are_not_drawn_again(
    tmp_path: Path,
    arguments: Arguments,
    killed_in_step: Callable[[int], AbstractContextManager[None]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    with killed_in_step(3):
        assert run_door(main, arguments()) == 130
    path = tmp_path / "run" / "token_histogram.safetensors"
    kept = path.read_bytes()
    path.unlink()
    assert run_door(main, arguments()) == 2
    assert "token_histogram.safetensors is missing" in capsys.readouterr().err
    path.write_bytes(kept)
    assert run_door(main, arguments()) == 0
    assert path.read_bytes() == kept


def test_a_new_target_is_met_with_the_counts_that_were_taken_under_the_old_one(
    tmp_path: Path, arguments: Arguments, killed_in_step: Callable[[int], AbstractContextManager[None]]
) -> None:
    with killed_in_step(2):
        assert run_door(main, arguments(privacy__token_histogram_share=0.2)) == 130
    before = Ledger.read(tmp_path / "run" / "ledger.json").entry("token_histogram").mechanism
    again = [
        *arguments(privacy__token_histogram_share=0.2, privacy__target_epsilon=7),
        "--resume_with_new_segment",
        "true",
    ]
    assert run_door(main, again) == 0
    ledger = Ledger.read(tmp_path / "run" / "ledger.json")
    assert ledger.entry("token_histogram").mechanism == before, "taken once, at the old noise"
    assert all(release.epsilon is not None and release.epsilon <= 7 for release in ledger.releases)


def test_one_run_draws_from_one_table_for_life(
    tmp_path: Path,
    arguments: Arguments,
    killed_in_step: Callable[[int], AbstractContextManager[None]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Killed between the file and the first step, the file taken away, and other tokens asked for."""
    from safesynthdp.training import session

    def dies(job: Any) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(session, "train", dies)
        assert run_door(main, arguments()) == 130
    path = tmp_path / "run" / "token_histogram.safetensors"
    released = path.read_bytes()
    path.unlink()
    again = [*arguments(data__max_length=30), "--resume_with_new_segment", "true"]
    assert run_door(main, again) == 2
    assert "was drawn from other token counts" in capsys.readouterr().err
    digest = tmp_path / "run" / "state" / "token_table.json"
    kept = digest.read_text()
    digest.unlink()
    assert run_door(main, again) == 2, "charged, and nothing left to compare with"
    digest.write_text(kept)
    with monkeypatch.context() as patch:
        patch.setattr(session, "train", dies)
        assert run_door(main, arguments(data__max_length=None, output_dir=tmp_path / "other")) == 130
    assert not path.is_file()
    assert run_door(main, [*arguments(), "--resume_with_new_segment", "true"]) == 0
    assert path.read_bytes() == released, "the same table, the same noise: one release"


def test_counts_with_another_noise_than_the_ledger_s_are_refused(
    tmp_path: Path,
    arguments: Arguments,
    killed_in_step: Callable[[int], AbstractContextManager[None]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    with killed_in_step(2):
        assert run_door(main, arguments()) == 130
    path = tmp_path / "run" / "token_histogram.safetensors"
    dataclasses.replace(TokenFile.read(path), noise_std=0.1).write(path)
    assert run_door(main, arguments()) == 2
    assert "another noise than the ledger pays for" in capsys.readouterr().err


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, math.nan])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="token_histogram_share"):
        PrivacyConfig(target_epsilon=1.0, token_histogram_share=share)


def test_less_than_no_bucket_is_refused() -> None:
    with pytest.raises(ConfigError, match="token_histogram_word_buckets=-1"):
        PrivacyConfig(target_epsilon=1.0, token_histogram_share=0.5, token_histogram_word_buckets=-1)


def test_a_share_of_no_target_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"share of privacy\.target_epsilon, which is null"):
        PrivacyConfig(noise_multiplier=1.0, token_histogram_share=0.5)


def test_a_table_of_before_lengths_were_counted_is_read_as_one_without_them(tmp_path: Path) -> None:
    facts = {"labels": ["bad"], "vocab_size": 3, "word_buckets": 4, "noise_std": 2.0, "source": "gaussian"}
    sums_LC = np.ones((1, 7), dtype=np.float32)
    save_file({"sums": sums_LC}, tmp_path / "table.safetensors", metadata={"safesynthdp": json.dumps(facts)})
    found = TokenFile.read(tmp_path / "table.safetensors")
    assert (found.word_buckets, found.lengths) == (4, 0)


@pytest.mark.parametrize(("buckets", "lengths"), [(-2, 6), (6, -2)])
def test_a_table_of_fewer_columns_than_none_is_refused(tmp_path: Path, buckets: int, lengths: int) -> None:
    path, sums_LC = tmp_path / "table.safetensors", np.ones((1, 7), dtype=np.float32)
    table = TokenFile(
        labels=("bad",), vocab_size=3, word_buckets=buckets, lengths=lengths, noise_std=2.0, sums_LC=sums_LC
    )
    table.write(path)
    with pytest.raises(LedgerMismatch, match="is not what it says it is"):
        TokenFile.read(path)


def test_a_record_that_was_cut_is_counted_as_cut_and_not_as_one_that_ended() -> None:
    cut, whole = (
        token_table(
            [Example(input_ids=(0, 3, 7, *ids), num_prompt_tokens=2, is_truncated=is_cut)],
            ["good"],
            label_set=LABELS,
            columns=WHOLE,
            units=Units(members=((0,),)),
        )[1]
        for ids, is_cut in (((), True), ((WHOLE.end_token,), False))
    )
    assert np.flatnonzero(cut).tolist() == [WHOLE.end_token, 7]
    assert np.flatnonzero(whole).tolist() == [7, WHOLE.end_column(1)]
    assert np.linalg.norm(cut) == pytest.approx(1)
    assert np.linalg.norm(whole) == pytest.approx(1)
