"""Every published number of the output mechanisms, through the calculator as people call it."""

import json
from typing import Any

import pytest

from safesynthdp.cli import run
from safesynthdp.privacy.command import main
from safesynthdp.privacy.conversions import pure_rho
from safesynthdp.privacy.output_conversions import softmax_rho
from safesynthdp.privacy.output_registry import output_mechanism
from safesynthdp.privacy.planner import shards_needed

TOLERANCE = 1e-4


def answer(capsys: pytest.CaptureFixture[str], words: str) -> dict[str, Any]:
    main([*words.split(), "--json"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def refusal(capsys: pytest.CaptureFixture[str], words: str) -> str:
    assert run(main, words.split()) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "Traceback" not in lines[0]
    return lines[0]


VECTORS: dict[str, dict[str, float | None]] = {
    "laplace --shards 16 --clip 1 --scale 0.5 --tokens 64 --adjacency null": {
        "score_range": 0.125,
        "pure_epsilon": 16,
        "rho": 1.989648,
        "cks": 11.688596,
        "cks_tight": 11.652269,
        "kov": 10.447377,
        "epsilon": 10.447377,
    },
    "softmax --shards 16 --clip 1 --temperature 1 --tokens 64 --adjacency null": {
        "pure_epsilon": 8,
        "rho": 0.124972883,
        "kov": 4.713919,
        "cks": 2.419093,
        "cks_tight": 2.418806,
        "rdp_curve": 2.389455,
        "epsilon": 2.389455,
    },
    "softmax --shards 16 --clip 1 --temperature 0.5 --tokens 64 --adjacency null": {
        "pure_epsilon": 16,
        "rho": 0.499566574,
        "cks": 5.221534,
        "cks_tight": 5.218974,
        "epsilon": 5.143897,
    },
    "softmax --shards 16 --clip 1 --temperature 1 --tokens 64 --adjacency replace": {
        "pure_epsilon": 16,
        "rho": 0.499566574,
        "cks": 5.221534,
        "cks_tight": 5.218974,
        "epsilon": 5.143897,
    },
    "softmax --shards 255 --clip 10 --temperature 2 --tokens 100 --adjacency null": {
        "pure_epsilon": 3.921569,
        "rho": 0.019222965,
        "cks": 0.881080,
        "epsilon": 0.875240,
    },
    "softmax --shards 7 --clip 0.650218496 --temperature 1.1 --tokens 500 --adjacency null --delta 1e-5": {
        "cks": 10.0,
        "epsilon": 9.977950,
    },
    "gaussian_probs --shards 64 --scale 0.1 --tokens 32 --adjacency replace": {
        "pure_epsilon": None,
        "score_range": None,
        "rho": 0.78125,
        "cks": 6.734201,
        "gaussian_exact": 6.312060,
        "epsilon": 6.312060,
    },
    "uniform_mix --shards 1 --single --mixing 0.5 --vocab_size 50257 --tokens 16 --adjacency many": {
        "pure_epsilon_per_token": 10.824925,
        "pure_epsilon": 173.198800,
        "epsilon": 173.198799,
    },
}


@pytest.mark.parametrize("words", VECTORS)
def test_a_published_vector_comes_out(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, f"output --mechanism {words}")
    flat = found | found["conversions"]
    for key, value in VECTORS[words].items():
        if value is None:
            assert flat[key] is None
            continue
        assert flat[key] == pytest.approx(value, rel=TOLERANCE), key
        assert flat[key] >= value - 2e-6, key
    assert found["epsilon"] == min(found["conversions"].values())


def test_the_keys_are_those_of_the_contract(capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, "output --mechanism gaussian_l2 --shards 8 --clip 1 --scale 2 --tokens 4 --adjacency null")
    assert {"epsilon", "delta", "pure_epsilon", "rho", "score_range", "conversions"} <= found.keys()
    assert found["l2_sensitivity"] == 1 / 8
    assert set(found["conversions"]) == {"cks", "gaussian_exact"}


def test_scalars_of_one_step() -> None:
    assert pure_rho(1.0) == pytest.approx(0.462117, rel=TOLERANCE)
    for eta, value in ((0.5, 0.031142), (1, 0.123302), (2, 0.474475), (4, 1.669850)):
        assert softmax_rho(eta) == pytest.approx(value, rel=TOLERANCE)
    simple = output_mechanism("softmax", shards=255, clip=10, temperature=2.0, tokens=100, adjacency="null")
    assert 100 * simple.simple_rho_step == pytest.approx(0.019223376, rel=TOLERANCE)
    other = output_mechanism("softmax", shards=7, clip=0.650218496, temperature=1.1, tokens=500, adjacency="null")
    assert 500 * other.simple_rho_step == pytest.approx(1.782695616, rel=TOLERANCE)


@pytest.mark.parametrize(("adjacency", "expected"), [("null", (36, 19, 11, 6)), ("many", (72, 38, 21, 11))])
def test_shards_that_an_epsilon_needs(adjacency: str, expected: tuple[int, ...]) -> None:
    found = tuple(
        shards_needed(
            lambda shards: output_mechanism("softmax", shards=shards, clip=1.0, tokens=64, adjacency=adjacency),
            target_epsilon=float(epsilon),
            delta=1e-6,
        )
        for epsilon in (1, 2, 4, 8)
    )
    assert found == expected


SOFTMAX = "output --mechanism softmax --shards 16 --clip 1 --tokens 64 --adjacency null"
PLAN = "plan --target_epsilon 2 --num_records 1000 --tokens 64 --num_texts 10"
REFUSED = {
    "output --mechanism softmax --shards 16 --tokens 64 --adjacency null": "clip",
    "output --mechanism softmax --shards 16 --clip 1 --adjacency null": "tokens",
    "output --mechanism softmax --shards 16 --clip 1 --tokens 64": "adjacency",
    "output --mechanism laplace --shards 16 --clip 1 --tokens 64 --adjacency null": "scale",
    "output --mechanism uniform_mix --shards 2 --vocab_size 9 --tokens 64 --adjacency null": "mixing",
    f"{SOFTMAX} --scale 2": "scale=2.0",
    f"{SOFTMAX} --mixing 0.5": "mixing=0.5",
    f"{SOFTMAX} --vocab_size 9": "vocab_size=9",
    "output --mechanism gaussian_probs --shards 16 --clip 1 --scale 1 --tokens 6 --adjacency null": "clip=1.0",
    "output --mechanism gaussian_l2 --shards 16 --clip 1 --scale 1 --temperature 1 --tokens 6 --adjacency null": (
        "temperature=1.0"
    ),
    "output --mechanism heuristic --shards 16 --clip 1 --tokens 64 --adjacency null": "mechanism=heuristic",
    "output --mechanism softmax --shards 1 --clip 1 --tokens 64 --adjacency null": "shards=1",
    f"{SOFTMAX} --single": "shards=16",
    f"{SOFTMAX} --clip 0": "clip=0",
    f"{SOFTMAX} --clip nan": "clip=nan",
    f"{SOFTMAX} --clip inf": "clip=inf",
    f"{SOFTMAX} --temperature 0": "temperature=0",
    f"{SOFTMAX} --tokens 0": "tokens=0",
    f"{SOFTMAX} --tokens 1.5": "tokens",
    f"{SOFTMAX} --shards 0": "shards=0",
    f"{SOFTMAX} --texts_per_batch 0": "texts_per_batch=0",
    f"{SOFTMAX} --texts_per_batch 1000000000": "texts_per_batch=1000000000",
    f"{SOFTMAX} --adjacency add_remove": "adjacency=add_remove",
    f"{SOFTMAX} --delta 0": "delta=0",
    f"{SOFTMAX} --delta 1": "delta=1",
    f"{SOFTMAX} --group_size 0": "group_size=0",
    f"{SOFTMAX} --tocens 3": "tocens",
    "output --mechanism uniform_mix --shards 2 --mixing 1 --vocab_size 9 --tokens 64 --adjacency null": "mixing=1",
    "output --mechanism softmax --shards 16 --clip 1e-200 --tokens 4 --adjacency null": "clip=1e-200",
    "output --mechanism laplace --shards 16 --clip 1 --scale 1e-308 --tokens 4 --adjacency null": "scale=1e-308",
    "output --mechanism laplace --shards 16 --clip 1 --scale 1e200 --tokens 4 --adjacency null": "scale=1e+200",
    "output --mechanism gaussian_l2 --shards 16 --clip 1 --scale 1e-200 --tokens 4 --adjacency null": "scale=1e-200",
    "output --mechanism uniform_mix --shards 2 --mixing 1e-99 --vocab_size 9 --tokens 4 --adjacency null": "mixing=1e-",
    f"{SOFTMAX} --group_size {10**200}": "group_size=1",
    f"{PLAN} --clip 0": "clip=0",
    f"{PLAN} --mechanism laplace_probs --scale 1 --clip 5": "clip=5.0",
    f"{PLAN} --mechanism gaussian_probs --scale 1 --adjacency replace": "adjacency=replace",
    "plan --target_epsilon 0 --num_records 9 --num_texts 1 --tokens 8": "target_epsilon=0",
    "plan --target_epsilon 1 --num_records 1 --num_texts 1 --tokens 8": "num_records=1",
    "plan --mechanism uniform_mix --target_epsilon 1 --num_records 9 --num_texts 1 --tokens 8": "mechanism=uniform_mix",
}


@pytest.mark.parametrize("words", REFUSED)
def test_bad_input_is_one_line_that_starts_with_the_flag(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal(capsys, words).startswith(f"error: {REFUSED[words]}")


def test_one_model_prints_a_warning_and_costs_what_it_costs(capsys: pytest.CaptureFixture[str]) -> None:
    words = "output --mechanism laplace --shards 1 --single --clip 1 --scale 10 --adjacency null --tokens"
    main([*words.split(), "64"])
    said = capsys.readouterr()
    assert said.err.startswith("warning: single")
    assert 15 < float(said.out.split()[1]) < 30
    main([*words.split(), "6400"])
    assert float(capsys.readouterr().out.split()[1]) > 500


def test_text_rounds_up_and_json_keeps_the_digits(capsys: pytest.CaptureFixture[str]) -> None:
    exact = answer(capsys, SOFTMAX)["epsilon"]
    main(SOFTMAX.split())
    shown = float(capsys.readouterr().out.split()[1])
    assert exact <= shown <= exact + 1e-4
    assert shown != exact


def test_a_plan_keeps_its_promise_and_says_why_when_there_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    words = "plan --target_epsilon 4 --num_records 4000 --num_texts 200 --tokens 64 --delta 1e-6"
    plan = answer(capsys, words)
    assert plan["epsilon"] <= 4
    assert plan["num_batches"] * plan["shards"] <= 4000
    assert plan["num_batches"] * plan["texts_per_batch"] >= 200
    assert plan["clip"] >= 1
    assert plan["forward_tokens"] == plan["num_texts"] * 64 * (plan["shards"] + 1)
    again = answer(
        capsys,
        f"output --mechanism softmax --shards {plan['shards']} --clip {plan['clip']} --temperature "
        f"{plan['temperature']} --tokens 64 --texts_per_batch {plan['texts_per_batch']} --adjacency null --delta 1e-6",
    )
    assert again["epsilon"] == plan["epsilon"]
    little = answer(capsys, "plan --target_epsilon 1 --num_records 100 --num_texts 60 --tokens 64")
    assert 0.05 <= little["clip"] < 1
    assert little["epsilon"] <= 1
    many = answer(capsys, "plan --target_epsilon 1 --num_records 2000000 --num_texts 400000 --tokens 512")
    assert many["num_batches"] * many["texts_per_batch"] >= 400_000  # one batch would pass the steps that have a price
    assert many["epsilon"] <= 1
    beyond = refusal(capsys, "plan --target_epsilon 1 --num_records 20 --num_texts 400000 --tokens 512 --clip 1")
    assert "target_epsilon" in beyond or "texts_per_batch" in beyond
    assert "texts" in refusal(capsys, "plan --target_epsilon 0.1 --num_records 50 --num_texts 9000 --tokens 64")
    assert "not even one text" in refusal(capsys, "plan --target_epsilon .01 --num_records 4 --num_texts 9 --tokens 64")
