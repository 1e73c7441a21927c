"""Draw one page for a whole run: the claim, the utility, the attacks, side by side.

python eval/render_report.py RUN... --output_dir OUT              # everything; not for publication
python eval/render_report.py RUN... --output_dir OUT --public     # only what may leave

RUN is any run directory (finetune, sample, evaluate, attack) or a folder that holds some.
"""

import sys

from safesynthdp.cli import leave, run
from safesynthdp.reporting.command import main

if __name__ == "__main__":
    leave(run(main, sys.argv[1:]))
