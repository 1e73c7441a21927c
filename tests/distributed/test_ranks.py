"""Several processes are one: the same sums, one noise, one failure.

Two gloo processes run all of ranks_worker.py once, four its sums and noise (all of it in the slow lane); the tests read
what each of them found.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from safesynthdp.errors import ConfigError
from safesynthdp.training import launching
from safesynthdp.training.sharding import deal

pytestmark = pytest.mark.timeout(300)  # four processes at once, on machines that do other things too
FULL_CASES = [f"{tie}, torch.float{bits}" for tie in ("untied", "tied") for bits in (32, 64)]
STD = 0.5 * 1.25  # clip times noise multiplier, as in ranks_worker.py
Found = list[dict[str, Any]]


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What each rank wrote down."""
    return run_ranks(request.param, tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def found_by_four(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What four ranks found of sums and noise, together."""
    return run_ranks(4, tmp_path_factory.mktemp("ranks"), "short")


def run_ranks(num_ranks: int, folder: Path, *words: str) -> Found:
    """Run the worker and return what each rank wrote down."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    worker = str(Path(__file__).with_name("ranks_worker.py"))
    common = os.environ | {"WORLD_SIZE": str(num_ranks), "LOCAL_WORLD_SIZE": str(num_ranks)}
    common |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
    }
    done = subprocess.run(
        [sys.executable, worker, str(folder), *words],
        env=common,
        stderr=subprocess.PIPE,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(num_ranks)]


def each(found: Found, check: str) -> list[tuple[int, int, dict[str, Any]]]:
    """Every rank's facts of a check: (world size, rank, facts)."""
    return [(size, rank, found[rank][str(size)][check]) for size in range(1, len(found) + 1) for rank in range(size)]


def of_full(found: Found) -> list[tuple[int, int, dict[str, Any]]]:
    """Every rank's facts of full sharding, over 2 ranks, and over 3 where there are."""
    return [facts for facts in each(found, "full_shards") if facts[0] in (2, 3)]


def test_the_sum_of_a_draw_is_the_same_for_1_to_4_processes_whatever_the_micro_batches(found: Found) -> None:
    check_sums(each(found, "sums"))


def test_four_processes_add_up_what_one_does_and_add_its_noise_once(found_by_four: Found) -> None:
    four = [(4, rank, facts["4"]) for rank, facts in enumerate(found_by_four)]
    assert len(four) == 4
    check_sums([(size, rank, facts["sums"]) for size, rank, facts in four])
    for generator in ("keyed", "device"):
        check_noise([(size, rank, facts["noise"]) for size, rank, facts in four], generator)


@pytest.mark.parametrize("generator", ["keyed", "device"])
def test_noise_is_added_once_to_the_sum_whatever_the_number_of_processes(found: Found, generator: str) -> None:
    check_noise(each(found, "noise"), generator)


def check_sums(facts: list[tuple[int, int, dict[str, Any]]]) -> None:
    for size, rank, checks in facts:
        assert len(checks) == 2 * 4 * 3
        for name, check in checks.items():
            tolerance = 1e-12 if "float64" in name else 1e-6
            assert check["error"] <= tolerance, (size, rank, name)
            assert check["facts"], f"rank {rank} of {size} tells another step: {name}"
            assert ("empty" in name) == (check["largest"] == 1.0), "only an empty draw leaves zeros"


def check_noise(facts: list[tuple[int, int, dict[str, Any]]], generator: str) -> None:
    for size, rank, checks in facts:
        noise = checks[generator]
        assert noise["std"] == pytest.approx(STD, rel=0.02), f"rank {rank} of {size}"  # 4 standard errors: 1.4 %
        assert abs(noise["correlation_of_steps"]) < 4 / 20000**0.5
        assert abs(noise["correlation_of_tensors"]) < 4 / 5000**0.5
    assert len({checks[generator]["digest"] for _, _, checks in facts}) == 1


def test_sums_broadcasts_and_facts_arrive_whole_in_buckets_of_any_size(found: Found) -> None:
    for size, _, talk in each(found, "talk"):
        together = size * (size + 1) / 2
        assert talk["added"] == [together] * 4
        assert talk["spread"] == 1.0
        assert talk["total"] == [together, size / 2]
        assert talk["share"] == {"of": 0, "text": "\u00e9" * 300}
        assert talk["bytes"] == [0, 1, 5000]
        assert talk["gather"]


def test_what_fails_on_one_rank_fails_on_all_and_rank_0_tells_it(found: Found) -> None:
    for size, rank, failures in each(found, "failures"):
        if size == 1:
            assert failures["refuse"] == ["ConfigError", 2, "train.x=1 is wrong here"]
            continue
        expected = ["UserError", 2, f"rank {size - 1} of {size}: train.x=1 is wrong here"]
        assert failures["refuse"] == (expected if rank == 0 else ["ReportedElsewhere", 2, ""])
        assert failures["disagree"][:2] == (["UserError", 2] if rank == 0 else ["ReportedElsewhere", 2])
        assert failures["in_step"] == [size]


def test_an_unexpected_failure_ends_all_ranks_without_sending_its_message(found: Found) -> None:
    for size, rank, failures in each(found, "failures"):
        kind, _, message = failures["crash"]
        if rank == size - 1:
            assert kind == "ZeroDivisionError", "the rank itself keeps its own error"
        else:
            assert kind == ("SafeSynthError" if rank == 0 else "ReportedElsewhere")
            assert "private text" not in message


def test_scores_are_the_same_bits_whoever_computes_them(found: Found) -> None:
    assert all(scores == {"same": True, "none": True} for _, _, scores in each(found, "scores"))


def test_the_start_up_check_accepts_sums_and_catches_averages(found: Found) -> None:
    for size, rank, checked in each(found, "self_check"):
        assert checked["good"] == [], (size, rank)
        assert checked["restored"]
        assert (checked["bad"] == []) == (size == 1)
        if size > 1:
            assert f"{size} processes add up another gradient than one does" in checked["bad"][2]


def test_adapters_on_a_sharded_base_give_the_sums_of_one_process_also_where_a_rank_has_no_work(found: Found) -> None:
    for size, rank, sharded in each(found, "shards"):
        if size == 1:
            continue
        for name, draw in sharded["draws"].items():
            assert draw["error"] <= 1e-12, f"rank {rank} of {size}: {name}"
            assert draw["facts"], "a made-up micro-batch is not counted"
            assert (draw["largest"] == 0) == (name == "empty")
        assert sharded["share"] < 1 / size + 0.1


def test_full_fine_tuning_on_sharded_weights_gives_the_sums_of_one_process_tied_or_not(found: Found) -> None:
    for size, rank, sharded in of_full(found):
        for case in FULL_CASES:
            tolerance = 1e-12 if "float64" in case else 1e-6
            for name, draw in sharded[case].items():
                assert draw["error"] <= tolerance * max(1, draw["largest"]), f"rank {rank} of {size}: {case}, {name}"
                assert draw["facts"], "a made-up micro-batch is not counted"
                assert (draw["largest"] == 0) == (name == "empty")
        assert sharded["share"] < 1 / size + 0.15, "each rank holds its part only"


def test_three_steps_on_sharded_weights_end_with_the_weights_and_moments_of_one_process(found: Found) -> None:
    for size, rank, sharded in of_full(found):
        for case in FULL_CASES:
            assert sharded["steps"][case] <= (1e-12 if "float64" in case else 1e-6), f"rank {rank} of {size}: {case}"


def test_every_element_of_a_sharded_sum_gets_the_noise_of_one_process_to_the_bit(found: Found) -> None:
    for size, rank, sharded in of_full(found):
        assert set(sharded["noise"].values()) == {True}, f"rank {rank} of {size}"


def test_the_start_up_checks_compare_sharded_sums_with_autograd_and_pass(found: Found) -> None:
    for _, _, sharded in of_full(found):
        assert all(said == [] for said in sharded["checked"].values()), sharded["checked"]


def test_what_cannot_be_sharded_exactly_is_refused_by_name(found: Found) -> None:
    for _, _, sharded in of_full(found):
        kinds = [said[:2] for said in sharded["refused"]]
        assert kinds == [["ConfigError", 2]] * 4
        names = ("clipping_engine=ghost", "gradient_checkpointing", "up_proj.weight are one tensor", "temperature is a")
        assert all(name in said[2] for name, said in zip(names, sharded["refused"], strict=True))


def test_every_micro_batch_is_dealt_once_and_none_is_a_deal_too() -> None:
    costs = [9, 1, 7, 7, 3, 20, 2]
    for size in (1, 2, 3, 4):
        shares = deal(costs, world_size=size)
        assert sorted(position for share in shares for position in share) == list(range(len(costs)))
        loads = [sum(costs[i] for i in share) for share in shares]
        assert max(loads) <= max(4 / 3 * sum(costs) / size, max(costs))
    assert deal([], world_size=3) == [[], [], []]


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"}, "accelerate launch --config_file"),
        ({"SLURM_STEP_NUM_TASKS": "2"}, "srun started 2 tasks"),
    ],
)
def test_a_launch_that_became_one_process_is_refused(environment: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        launching._refuse_silent_single(environment)
    launching._refuse_silent_single(environment | {"WORLD_SIZE": "2"})
    launching._refuse_silent_single({"ACCELERATE_MIXED_PRECISION": "no"})


def test_another_number_of_processes_than_asked_for_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"hardware.num_processes=2, but 1 started"):
        launching.start_ranks(num_processes=2)
    assert launching.start_ranks(num_processes=1).world_size == 1
