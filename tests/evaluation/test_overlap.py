"""Windows find what is shared, and only that."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safesynthdp.evaluation import overlap
from safesynthdp.evaluation.overlap import CHECKS, Check, find_matches, window_hashes

EXACT, NGRAM, RUN = CHECKS
SENTENCE = "one two three four five six seven eight nine ten eleven twelve thirteen"


def matches(check: Check, probe: str, pool: str) -> bool:
    """Whether one text shares a window with one other."""
    return bool(find_matches(check, probes=[probe], pool=[pool], masks_MQ=np.ones((1, 1), dtype=np.bool_))[0, 0])


def test_the_names_are_those_of_metrics_json() -> None:
    assert [check.name for check in CHECKS] == ["exact_match", "ngram_13", "chars_50"]


def test_exact_match_sees_through_case_and_punctuation_and_nothing_else() -> None:
    assert matches(EXACT, "A good  film!", "a GOOD film")
    assert not matches(EXACT, "a good film", "a good films")


def test_empty_texts_match_nothing() -> None:
    assert not matches(EXACT, "", "")
    assert not matches(EXACT, "  \n", " ")
    assert EXACT.share_long_enough(["", " ", "x"]) == pytest.approx(1 / 3)


def test_thirteen_words_match_and_twelve_do_not() -> None:
    assert matches(NGRAM, f"before {SENTENCE.upper()}, after", f"x y {SENTENCE} z")
    assert not matches(NGRAM, f"before {SENTENCE.rsplit(' ', 1)[0]} after", f"x y {SENTENCE} z")


def test_fifty_characters_match_and_forty_nine_do_not() -> None:
    run = "abcdefghij" * 5
    assert matches(RUN, f"<{run}>", f"({run})")
    assert not matches(RUN, f"<{run[:49]}>", f"({run[:49]})")
    assert matches(RUN, "a b " * 13, "a\n\tb " * 13)


def test_a_window_never_spans_two_texts() -> None:
    words = SENTENCE.split()
    halves = [" ".join(words[:7]), " ".join(words[7:])]
    masks = np.ones((1, 2), dtype=np.bool_)
    assert not find_matches(NGRAM, probes=[SENTENCE], pool=halves, masks_MQ=masks).any()
    assert not find_matches(NGRAM, probes=halves, pool=[SENTENCE, "x"], masks_MQ=masks).any()


def test_a_record_outside_the_mask_is_not_met() -> None:
    masks = np.array([[True, False], [False, True], [False, False]])
    found = find_matches(EXACT, probes=["a b", "c d"], pool=["a b", "c d"], masks_MQ=masks)
    assert found.tolist() == [[True, False], [False, True], [False, False]]


@settings(max_examples=60)
@given(st.lists(st.text("ab ", max_size=40), min_size=1, max_size=6), st.lists(st.text("ab ", max_size=40), min_size=1))
def test_runs_equal_a_search_in_the_strings(probes: list[str], pool: list[str]) -> None:
    length = 6
    check = Check("runs", "6 characters", lambda texts: overlap._runs(texts))
    saved, overlap.RUN_CHARACTERS = overlap.RUN_CHARACTERS, length
    try:
        found = find_matches(check, probes=probes, pool=pool, masks_MQ=np.ones((1, len(pool)), dtype=np.bool_))[0]
    finally:
        overlap.RUN_CHARACTERS = saved
    plain = [" ".join(text.split()) for text in pool]
    for probe, is_found in zip((" ".join(text.split()) for text in probes), found, strict=True):
        windows = [probe[i : i + length] for i in range(len(probe) - length + 1)]
        assert is_found == any(window in text for window in windows for text in plain)


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 20))
def test_equal_windows_have_equal_hashes_and_others_do_not(values: list[int], length: int) -> None:
    hashes = window_hashes(np.array(values, dtype=np.uint64), length)
    windows = [tuple(values[i : i + length]) for i in range(len(values) - length + 1)]
    assert len(hashes) == len(windows)
    assert len(set(hashes.tolist())) == len(set(windows))
    assert len({*zip(windows, hashes.tolist(), strict=True)}) == len(set(windows))


def test_blocks_do_not_change_what_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    probes = [f"{SENTENCE} {i}" if i % 3 else "short" for i in range(20)]
    pool = ["nothing", f"so {SENTENCE}", "else"]
    masks = np.ones((1, 3), dtype=np.bool_)
    for check in CHECKS:
        whole = find_matches(check, probes=probes, pool=pool, masks_MQ=masks)
        with monkeypatch.context() as patch:
            patch.setattr(overlap, "_BLOCK", 100)
            assert np.array_equal(whole, find_matches(check, probes=probes, pool=pool, masks_MQ=masks))


def test_hashes_are_the_same_in_every_process() -> None:
    program = (
        "import numpy as np; from safesynthdp.evaluation.overlap import CHECKS;"
        f"print([[int(h) for hashes, _ in c.windows([{SENTENCE!r}]) for h in hashes[:2]] for c in CHECKS])"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
        ).stdout
        for seed in ("1", "2")
    }
    here = [[int(h) for hashes, _ in c.windows([SENTENCE]) for h in hashes[:2]] for c in CHECKS]
    assert found == {f"{here}\n"}


def test_hashes_are_the_same_in_every_version() -> None:
    # splitmix64 of each code, folded pairwise: computed with Python's integers
    expected = [14089330687880320414, 5092849035348017723]
    assert window_hashes(np.arange(4, dtype=np.uint64), 3).tolist() == expected


def test_hostile_text_passes() -> None:
    hostile = ["\x00" * 60, "\u202e" * 60, "\U0001f600" * 60, "e\u0301" * 100, "\ud800" * 60]
    for check in CHECKS:
        for text in hostile:
            assert matches(check, text, text) == bool(check.long_enough([text])[0])
            assert not matches(check, text, SENTENCE)
