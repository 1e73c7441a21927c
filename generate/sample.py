"""Sample labelled synthetic text from a fine-tuning run.

python generate/sample.py --run runs/tiny --num_records 40 --output_dir runs/tiny-text             # CPU, seconds
python generate/sample.py --config generate/recipes/sample.yaml --run RUN --output_dir OUT
python generate/sample.py --run RUN --untuned --num_records 1000 --output_dir OUT                  # epsilon = 0
accelerate launch --config_file accelerate_configs/cpu_2proc.yaml generate/sample.py --run RUN --num_records 1000 ...
"""

import sys

from safesynthdp.cli import leave, run
from safesynthdp.generation.command import main

if __name__ == "__main__":
    leave(run(main, sys.argv[1:]))
