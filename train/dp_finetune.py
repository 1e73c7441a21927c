"""Fine-tune a language model with DP-SGD and write down what it cost.

python train/dp_finetune.py --config train/recipes/tiny.yaml                                     # CPU, seconds
accelerate launch --config_file accelerate_configs/cpu.yaml train/dp_finetune.py --config train/recipes/tiny.yaml
accelerate launch --config_file accelerate_configs/single_gpu.yaml train/dp_finetune.py --config R --output_dir OUT
accelerate launch --config_file accelerate_configs/cpu_2proc.yaml train/dp_finetune.py --config R --output_dir OUT
accelerate launch --config_file accelerate_configs/multi_gpu.yaml --num_processes 8 train/dp_finetune.py --config R
safesynthdp finetune --config R --privacy.target_epsilon 4                                       # the same code

The same command goes on where it was interrupted.
"""

import sys

from safesynthdp.cli import leave, run
from safesynthdp.training.command import main

if __name__ == "__main__":
    leave(run(main, sys.argv[1:]))
