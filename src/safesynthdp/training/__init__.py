"""Floor 1: Poisson batches, clipping, the private step, the loop and resume."""
