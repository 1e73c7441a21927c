"""Floor 3: membership signals, scores and epsilon lower bounds."""
