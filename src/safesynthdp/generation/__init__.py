"""Floor 2: decoding and the label plan at sampling time."""
