"""Private labelled text in, synthetic labelled text out, with a certificate of what it cost."""
