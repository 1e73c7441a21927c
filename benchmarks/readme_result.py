"""Put the table of a folder under results/ into README.md, between the two marks; nothing there is typed by hand.

python benchmarks/readme_result.py results/2026-11-30-vader-cpu
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- result: written by benchmarks/readme_result.py -->", "<!-- end of result -->"


def main() -> None:
    """Read ``short.md``, which benchmarks/evidence.py wrote, and rewrite the part of README.md."""
    folder = Path(sys.argv[1]).resolve().relative_to(ROOT)
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    table = (ROOT / folder / "short.md").read_text(encoding="utf-8").strip()
    figure = f"![accuracy against epsilon]({folder}/utility.svg)"
    rest = f"Private prediction and every audit: [the whole table]({folder}/table.md)."
    readme.write_text(f"{before}{BEGIN}\n{table}\n\n{figure}\n\n{rest}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
