"""Attack a recipe with shadow models, or one run without any: who was in, what epsilon is proved, aggregates only.

python attacks/shadow_mia.py plan --config attacks/recipes/tiny.yaml --output_dir POOL    # who is trained on what
python attacks/shadow_mia.py plan --config attacks/recipes/existing_run.yaml              # a run that exists as target
python attacks/shadow_mia.py run --pool POOL --max_parallel 2                             # CPU, minutes
python attacks/shadow_mia.py run --pool POOL --engine slurm --max_parallel 4              # a SLURM array
python attacks/shadow_mia.py run --pool POOL --engine submitit                            # or by way of submitit
python attacks/shadow_mia.py run --pool POOL --shard 3                                    # one task of any scheduler
python attacks/shadow_mia.py status --pool POOL --json
python attacks/shadow_mia.py score --pool POOL                                            # exits 1 on a refuted claim
python attacks/shadow_mia.py score --run RUN --output_dir OUT                             # no shadow model, minutes
accelerate launch --config_file accelerate_configs/cpu_2proc.yaml attacks/shadow_mia.py score --run RUN --output_dir OUT
"""

import sys

from safesynthdp.attacks.command import main
from safesynthdp.cli import leave, run

if __name__ == "__main__":
    leave(run(main, sys.argv[1:]))
