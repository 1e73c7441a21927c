"""Draw labelled synthetic text from private records and a public model: many prompts, or adapters, vote on each token.

python generate/predict.py --config generate/recipes/predict_tiny.yaml                              # CPU, seconds
python generate/predict.py --config generate/recipes/context_softmax.yaml --output_dir OUT
python generate/predict.py --config generate/recipes/adapters_softmax.yaml --output_dir OUT
"""

import sys

from safesynthdp.cli import leave, run
from safesynthdp.generation.predict_command import main

if __name__ == "__main__":
    leave(run(main, sys.argv[1:]))
