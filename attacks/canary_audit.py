"""Turn guesses, error counts or scores into a lower bound on epsilon; no model, no GPU, an answer at once.

python attacks/canary_audit.py one-run --canaries 1000 --guesses 100 --correct 80 --delta 1e-5 --alpha 0.05
python attacks/canary_audit.py clopper-pearson --false_positives 1 --nonmembers 1000 --false_negatives 2 --members 1000
python attacks/canary_audit.py scores SCORES.parquet --claimed_epsilon 4 --json
"""

import sys

from safesynthdp.attacks.audit_command import main
from safesynthdp.cli import leave, run

if __name__ == "__main__":
    leave(run(main, sys.argv[1:]))
