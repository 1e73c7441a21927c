"""Score a finetune run's training records against records it never saw: membership inference, aggregates only.

python attacks/shadow_mia.py score --run RUN --output_dir OUT                       # CPU or GPU, minutes
python attacks/shadow_mia.py score --run RUN --output_dir OUT --max_records 100 --json
accelerate launch --config_file accelerate_configs/cpu_2proc.yaml attacks/shadow_mia.py score --run RUN --output_dir OUT
"""

import sys

from safesynthdp.attacks.command import main
from safesynthdp.cli import run

if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
