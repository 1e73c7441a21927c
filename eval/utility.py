"""Train on synthetic text, test on real text, and look for what was memorised.

python eval/utility.py --real T.csv --synthetic S.parquet --holdout H.csv --output_dir OUT    # any three files
python eval/utility.py --real RUN --synthetic SAMPLE --holdout RUN --baseline UNTUNED --output_dir OUT
python eval/utility.py --config eval/recipes/utility.yaml --output_dir OUT --json             # for machines

`safesynthdp evaluate` is the same command. Results: OUT/metrics.json.
"""

import sys

from safesynthdp.cli import leave, run
from safesynthdp.evaluation.command import main

if __name__ == "__main__":
    leave(run(main, sys.argv[1:]))
