"""Floor 0: budget, accounting, ledger, mechanisms and secure randomness; it imports only the errors."""
