"""Every epsilon that a page prints is computed again here, and none is printed that is not listed.

A page that gains an epsilon fails the first test until the number has its line below.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from safesynthdp.cli import run as run_main
from safesynthdp.privacy.accounting import Priced, joint_epsilon
from safesynthdp.privacy.command import main as account
from safesynthdp.privacy.command import round_up
from safesynthdp.privacy.mechanisms import DPSGDMechanism, LabelHistogramMechanism
from safesynthdp.privacy.token_histogram import TokenHistogramMechanism

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "docs/guarantees.md", "docs/sharp_edges.md", "docs/paper.md",
         *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs/howto").glob("*.md")))]  # fmt: skip
WORDS = re.compile(r"(?:epsilon|costs?)\**(?: =| is| of| costs?)? \**(\d[\d,]*(?:\.\d+)?)", re.IGNORECASE)
TABLE = "docs/guarantees.md"
GRID = "--num_records 20000 --expected_batch_size 256 --steps 200 --delta 1e-6 --noise_multiplier 1"
ONE_TEXT = "--mechanism laplace --shards 1 --single --clip 1 --scale 10 --tokens 64 --adjacency many --delta 1e-6"
SOFTMAX = "--mechanism softmax --temperature 1 --tokens 32 --delta 1e-6"
FREE = {
    (page, "0") for page in ("README.md", "docs/howto/reading_the_report.md", "docs/howto/evaluate.md")
}  # the untuned model: nothing is spent
INPUTS = {
    ("docs/howto/choosing_epsilon.md", "1"): "an example of what epsilon says, not a price",
    ("docs/howto/choosing_epsilon.md", "8"): "the same",
    ("docs/howto/tuning.md", "8"): "the target of the runs whose commits are named",
    ("docs/guarantees.md", "1.3"): "a range of the accountant",
    ("docs/sharp_edges.md", "1"): "a range",
}


def price(words: str, capsys: pytest.CaptureFixture[str]) -> float:
    assert run_main(account, [*words.split(), "--json"]) == 0
    return float(json.loads(capsys.readouterr().out)["epsilon"])


def printed(page: str) -> list[str]:
    """Numbers beside the word, outside of code blocks: a flag of a command is a wish, not a result."""
    text = (ROOT / page).read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```|^ {4,}\S.*?$", "", text, flags=re.DOTALL | re.MULTILINE)
    return [number.rstrip(".,").replace(",", "") for number in WORDS.findall(prose)]


Check = Callable[[pytest.CaptureFixture[str]], float]
PRICES: dict[tuple[str, str], Check] = {
    ("docs/howto/choosing_epsilon.md", "1.4613"): lambda capsys: price(f"dpsgd {GRID}", capsys),
    ("docs/guarantees.md", "18.35"): lambda capsys: price(f"output {ONE_TEXT}", capsys),
    ("docs/guarantees.md", "653"): lambda capsys: price(f"output {ONE_TEXT} --texts_per_batch 100", capsys),
    ("docs/guarantees.md", "1.6"): lambda capsys: price(
        f"output {SOFTMAX} --shards 16 --clip 1 --adjacency null", capsys
    ),
    ("docs/guarantees.md", "40"): lambda capsys: price(
        f"output {SOFTMAX} --shards 1 --single --clip 0.5 --adjacency null", capsys
    ),
}


@pytest.mark.parametrize("page", PAGES)
def test_no_page_prints_an_epsilon_that_is_not_computed_again(page: str) -> None:
    ours = [("README.md", price["epsilon"]) for price in readme_prices()]
    known = {number for where, number in [*PRICES, *FREE, *INPUTS, *ours] if where == page}
    assert [number for number in printed(page) if number not in known] == []


@pytest.mark.parametrize(("page", "number"), list(PRICES))
def test_a_printed_epsilon_is_the_price(page: str, number: str, capsys: pytest.CaptureFixture[str]) -> None:
    decimals = len(number.partition(".")[2])
    found = PRICES[page, number](capsys)
    assert number in printed(page)
    assert abs(found - float(number)) <= 0.501 * 10**-decimals or float(round_up(found)) == float(number), found


def readme_prices() -> list[dict[str, str]]:
    """What README.md says that each run of its table cost, and what was done for it."""
    form = re.compile(
        r"\*\*epsilon = (?P<epsilon>[0-9.]+)\*\* at delta = (?P<delta>\S+): (?P<steps>\d+) steps with noise multiplier "
        r"(?P<noise>\S+) at sample rate (?P<rate>\S+), token counts with noise (?P<tokens>\S+), and noisy label counts"
    )
    return [match.groupdict() for match in form.finditer((ROOT / "README.md").read_text(encoding="utf-8"))]


def test_the_readme_has_a_price_for_each_epsilon_of_its_recipes() -> None:
    files = [ROOT / f"recipes/pipeline_vader_cpu{which}.yaml" for which in ("", "_long")]
    targets = [target for file in files for target in yaml.safe_load(file.read_text(encoding="utf-8"))["epsilons"]]
    found = sorted(float(price["epsilon"]) for price in readme_prices())
    assert len(found) == len(targets)
    for epsilon, target in zip(found, sorted(targets), strict=True):
        assert 0.98 * target <= epsilon <= target


@pytest.mark.parametrize("which", range(4))
def test_an_epsilon_of_the_readme_follows_from_what_it_names(which: int) -> None:
    """18,917 records: the training side of the pinned split."""
    said = readme_prices()[which]
    recipe = yaml.safe_load((ROOT / "train/recipes/smollm2_vader.yaml").read_text(encoding="utf-8"))
    mechanisms: list[Priced] = [
        DPSGDMechanism(
            num_records=18917,
            expected_batch_size=round(float(said["rate"]) * 18917),
            noise_multiplier=float(said["noise"]),
            steps=int(said["steps"]),
            per_sample_max_grad_norm=1.0,
        ),
        LabelHistogramMechanism.from_epsilon(recipe["privacy"]["label_histogram_epsilon"], adjacency="add_remove"),
        TokenHistogramMechanism(noise_multiplier=float(said["tokens"])),
    ]
    found = joint_epsilon(mechanisms, delta=float(said["delta"]), adjacency="add_remove")
    assert said["epsilon"] == round_up(found)


@pytest.mark.parametrize("row", [0, 1, 2, 3])
def test_the_table_of_what_one_model_costs_is_the_price(row: int, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / TABLE).read_text(encoding="utf-8")
    table = text[text.index("| clip | one model") :].splitlines()[2:6]
    cells = [cell.strip().replace(",", "") for cell in table[row].strip("|").split("|")]
    clip, numbers = cells[0], {(1, 1): cells[2], (1, 100): cells[3], (16, 1): cells[5], (16, 100): cells[6]}
    for (shards, texts), number in numbers.items():
        single = " --single" if shards == 1 else ""
        words = f"output {SOFTMAX} --shards {shards}{single} --clip {clip} --adjacency null --texts_per_batch {texts}"
        found = price(words, capsys)
        decimals = len(number.partition(".")[2])
        assert abs(found - float(number)) <= 0.501 * 10**-decimals, (shards, texts, found)


def test_the_number_beyond_an_accountant_s_range_is_the_price(capsys: pytest.CaptureFixture[str]) -> None:
    words = "dpsgd --num_records 10000 --expected_batch_size 100 --steps 50000 --delta 1e-12 --noise_multiplier 2"
    assert f"{price(f'{words} --accountant pld', capsys):.2f}" == "8.84"
    assert "where `pld` says 8.84" in (ROOT / "docs/sharp_edges.md").read_text(encoding="utf-8")
