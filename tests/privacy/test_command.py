"""The privacy calculator as people and scripts call it."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from safesynthdp.errors import ConfigError, LedgerMismatch, SafeSynthError, UserError
from safesynthdp.privacy.command import main, round_up
from safesynthdp.privacy.ledger import Entry, Ledger, Release
from safesynthdp.privacy.mechanisms import DPSGDMechanism, LabelHistogramMechanism

DPSGD = ["dpsgd", "--num_records", "120000", "--expected_batch_size", "4096", "--steps", "300", "--accountant", "rdp"]
TRAINING = DPSGDMechanism(
    num_records=120000,
    expected_batch_size=4096,
    noise_multiplier=1.0,
    steps=300,
    per_sample_max_grad_norm=1.0,
    accountant="rdp",
)


def answer(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    main([*argv, "--json"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def write_ledger(path: Path, epsilon: float | None, *, released: bool = True, kind: str = "dpsgd") -> Path:
    spent = Entry(id="t", kind=kind, mechanism=TRAINING.to_entry() if kind == "dpsgd" else {})
    release = Release(artifact="weights", epsilon=epsilon, delta=1e-6, rule="compose", entries=("t",))
    releases = (release,) if released else ()
    Ledger(unit="record", adjacency="add_remove", entries=(spent,), releases=releases).write(path)
    return path


def test_dpsgd_answers_with_the_agreed_keys(capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, *DPSGD, "--noise_multiplier", "1.0")
    assert {"epsilon", "delta", "noise_multiplier", "sample_rate", "steps", "accountant"} <= found.keys()
    assert found["epsilon"] == TRAINING.epsilon(delta=1e-6)
    assert (found["sample_rate"], found["steps"], found["accountant"]) == (4096 / 120000, 300, "rdp")


def test_prv_answers_when_no_accountant_is_named_and_pld_where_it_cannot(capsys: pytest.CaptureFixture[str]) -> None:
    flags = [*DPSGD[:-2], "--noise_multiplier", "1.0", "--delta", "1e-6"]
    found = answer(capsys, *flags)
    assert found["accountant"] == "prv"
    assert found["epsilon"] == pytest.approx(4.4584, rel=1e-4)
    found = answer(capsys, *flags, "--adjacency", "replace")
    assert found["accountant"] == "pld"
    assert found["epsilon"] == answer(capsys, *flags, "--adjacency", "replace", "--accountant", "pld")["epsilon"]


def test_a_target_gives_the_noise_that_meets_it(capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, *DPSGD, "--target_epsilon", "3")
    again = answer(capsys, *DPSGD, "--noise_multiplier", repr(found["noise_multiplier"]))
    assert found["epsilon"] == again["epsilon"]
    assert 3 / 1.01 <= found["epsilon"] <= 3


def test_histogram_answers_with_the_agreed_keys(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("histogram", "--adjacency", "add_remove", "--delta", "1e-6", "--mechanism")
    found = answer(capsys, *flags, "laplace", "--scale", "0.5")
    assert list(found) == ["epsilon", "delta", "pure_epsilon", "rho", "conversions"]
    assert found["pure_epsilon"] == 2
    assert found["rho"] == pytest.approx(1.523188, abs=1e-6)
    assert found["epsilon"] == pytest.approx(1.999999, abs=1e-6)
    assert list(found["conversions"]) == ["pure", "kov", "cks", "cks_tight"]
    normal = answer(capsys, *flags, "gaussian", "--scale", "2.2360680")
    assert normal["pure_epsilon"] is None
    assert normal["conversions"] == pytest.approx({"cks": 2.141939, "discrete_exact": 2.008754}, abs=1e-6)


def test_people_read_epsilon_rounded_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert (round_up(2.00000001), round_up(0.1), round_up(1.99999), round_up(0.0)) == (
        "2.0001", "0.1000", "2.0000", "0.0000",
    )  # fmt: skip
    assert "no formal guarantee" in round_up(None)
    main([*DPSGD, "--noise_multiplier", "1.0"])
    line = capsys.readouterr().out.splitlines()[0]
    assert float(line.split()[1]) >= TRAINING.epsilon(delta=1e-6)


@pytest.mark.parametrize("epsilon", [0.12341, 1.00005, 3.99995001, 17.3, 269.51770, 1e-9, 4.00000000000001])
def test_rounding_never_goes_down(epsilon: float) -> None:
    assert epsilon <= float(round_up(epsilon)) < epsilon + 1.0001e-4


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("noise_multiplier", "0"), ("noise_multiplier", "inf"), ("noise_multiplier", "nan"), ("noise_multiplier", "x"),
        ("delta", "0"), ("delta", "1"), ("delta", "nan"), ("delta", "2"), ("steps", "0"), ("steps", "1.5"),
        ("num_records", "0"), ("num_records", "10"), ("expected_batch_size", "-1"), ("accountant", "gdp"),
        ("adjacency", "replace"), ("adjacency", "null"),
    ],
)  # fmt: skip
def test_a_bad_value_is_one_line_that_starts_with_the_flag(flag: str, value: str) -> None:
    wanted = {"num_records10": "expected_batch_size", "adjacencyreplace": "accountant"}.get(flag + value, flag)
    with pytest.raises(ConfigError) as caught:
        main([*DPSGD, "--noise_multiplier", "1.0", f"--{flag}", value])
    assert str(caught.value).startswith(wanted)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        ([], "dpsgd"), (["guess"], "guess"), (["dpsgd"], "num_records"), ([*DPSGD], "noise_multiplier"),
        ([*DPSGD, "--noise_multiplier", "1", "--target_epsilon", "1"], "target_epsilon"),
        ([*DPSGD, "--noise", "1.0"], "noise"), ([*DPSGD, "--noise_multiplier", "1", "--clip", "1"], "clip"),
        (["histogram", "--mechanism", "laplace"], "scale"), (["ledger"], "RUN_OR_FILE"),
        (["histogram", "--mechanism", "laplace", "--scale", "0"], "scale="),
        (["histogram", "--mechanism", "cauchy", "--scale", "1"], "mechanism=cauchy"),
        (["histogram", "--mechanism", "laplace", "--scale", "1", "--delta", "0"], "delta="),
    ],
)  # fmt: skip
def test_an_unknown_or_missing_flag_is_one_line(argv: list[str], named: str) -> None:
    with pytest.raises(UserError) as caught:
        main(argv)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_delta_above_one_over_the_records_is_warned_about(capsys: pytest.CaptureFixture[str]) -> None:
    main([*DPSGD, "--noise_multiplier", "1.0", "--delta", "1e-3", "--json"])
    told = capsys.readouterr()
    assert "delta=0.001 is above 1 / num_records" in told.err
    json.loads(told.out)


def test_a_true_ledger_is_confirmed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    epsilon = TRAINING.epsilon(delta=1e-6)
    path = write_ledger(tmp_path / "ledger.json", epsilon)
    for place in (tmp_path, path):
        found = answer(capsys, "ledger", str(place))
        assert list(found) == ["path", "unit", "adjacency", "releases", "epsilon", "delta"]
        assert found["epsilon"] == epsilon
        assert found["releases"][0]["recomputed_epsilon"] == epsilon
        assert found["releases"][0]["entries"] == ["t"]


def test_a_ledger_that_says_too_little_fails_and_still_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_ledger(tmp_path / "ledger.json", TRAINING.epsilon(delta=1e-6) - 1e-5)
    with pytest.raises(SafeSynthError, match="weights is stored below what its entries cost") as caught:
        main(["ledger", str(path), "--json"])
    assert caught.value.exit_code == 1
    assert json.loads(capsys.readouterr().out)["epsilon"] == TRAINING.epsilon(delta=1e-6)


def test_an_epsilon_over_an_access_without_a_guarantee_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    honest = write_ledger(tmp_path / "honest.json", None, kind="none")
    assert answer(capsys, "ledger", str(honest))["epsilon"] is None
    claiming = write_ledger(tmp_path / "claiming.json", 3.0, kind="none")
    with pytest.raises(SafeSynthError, match="stored below"):
        main(["ledger", str(claiming)])
    assert "no formal guarantee" in capsys.readouterr().out


def test_a_run_without_a_release_is_priced_from_its_entries(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_ledger(tmp_path / "ledger.json", None, released=False)
    found = answer(capsys, "ledger", str(path), "--delta", "1e-5")
    assert found["epsilon"] == TRAINING.epsilon(delta=1e-5)
    assert (found["releases"], found["delta"]) == ([], 1e-5)
    main(["ledger", str(path)])
    assert "no release yet" in capsys.readouterr().out


def test_a_missing_ledger_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(LedgerMismatch, match="cannot be read"):
        main(["ledger", str(tmp_path)])


@pytest.mark.parametrize("argv", [["--help"], ["dpsgd", "--help"], ["ledger", "-h"]])
def test_help_exits_with_zero(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 0
    assert "usage" in capsys.readouterr().out


def test_the_calculator_answers_without_torch_unless_prv_is_asked() -> None:
    code = (
        "import sys; from safesynthdp.privacy.command import main;"
        "main(['dpsgd', '--num_records', '1000', '--expected_batch_size', '10', '--noise_multiplier', '1',"
        " '--steps', '10', '--delta', '1e-4', '--accountant', 'pld', '--json']);"
        "assert not {'torch', 'opacus', 'transformers'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0 < json.loads(done.stdout)["epsilon"] < math.inf


def test_a_histogram_entry_is_what_the_calculator_prices(capsys: pytest.CaptureFixture[str]) -> None:
    entry = LabelHistogramMechanism(mechanism="laplace", scale=4.0, adjacency="replace").to_entry()
    flags = [item for key, value in entry.items() for item in (f"--{key}", str(value))]
    assert answer(capsys, "histogram", *flags)["epsilon"] == LabelHistogramMechanism.from_entry(entry).epsilon(
        delta=1e-6
    )
