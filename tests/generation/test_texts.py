"""Flaws are counted and kept, and nothing is tidied away."""

import pytest
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from safesynthdp.generation.decoding import DrawnRow
from safesynthdp.generation.texts import REPLACEMENT, TextDecoder, count_flaws


def row(*tokens: int, is_truncated: bool = False) -> DrawnRow:
    return DrawnRow(number=0, tokens=tokens, is_truncated=is_truncated)


def ids(text: str | bytes) -> list[int]:
    return [byte + 3 for byte in (text if isinstance(text, bytes) else text.encode())]


@pytest.fixture
def decoder() -> TextDecoder:
    return TextDecoder(ByT5Tokenizer(extra_ids=0))


@pytest.mark.parametrize("text", ["plain", "  spaces stay \n", "naïve café ☃ 🙂", "a\x00b", "end\r\n"])
def test_clean_bytes_come_back_as_they_are(decoder: TextDecoder, text: str) -> None:
    found = decoder(row(*ids(text)))
    assert found.text == text
    assert count_flaws([found]) == {"empty": 0, "truncated": 0, "malformed": 0}
    assert found.num_tokens == len(text.encode())


def test_bytes_that_are_no_utf8_are_replaced_and_counted(decoder: TextDecoder) -> None:
    found = decoder(row(*ids(b"ab\xff\xc3cd")))
    assert found.text == f"ab{REPLACEMENT}{REPLACEMENT}cd"
    assert found.is_malformed


@pytest.mark.parametrize("stray", [0, 2, 259, 10_000])
def test_a_special_or_unknown_id_is_left_out_and_counted(decoder: TextDecoder, stray: int) -> None:
    found = decoder(row(*ids("ab"), stray, *ids("cd")))
    assert found.text == "abcd"
    assert found.is_malformed


@pytest.mark.parametrize("text", ["", " ", "\n\t "])
def test_white_space_alone_is_empty_and_stays(decoder: TextDecoder, text: str) -> None:
    found = decoder(row(*ids(text)))
    assert found.is_empty
    assert found.text == text


def test_counts_cover_every_flaw_of_every_text(decoder: TextDecoder) -> None:
    rows = [row(), row(*ids("a")), row(*ids(b"\xff"), is_truncated=True), row(*ids(" "), is_truncated=True)]
    assert count_flaws(map(decoder, rows)) == {"empty": 2, "truncated": 2, "malformed": 1}


def test_a_byte_level_bpe_tokenizer_counts_half_a_character_as_malformed() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={"<end>": 256} | {c: i for i, c in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>")  # type: ignore[no-untyped-call]
    decoder, tokens = TextDecoder(tokenizer), tokenizer(" x é .", add_special_tokens=False)["input_ids"]
    whole = decoder(row(*tokens))
    assert whole.text == " x é ."
    assert not whole.is_malformed
    assert decoder(row(*tokens[:4])).is_malformed
    assert decoder(row(*tokens, 256)).is_malformed
