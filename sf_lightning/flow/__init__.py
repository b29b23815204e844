"""Conditional flow matching: path, loss, guidance, solver, noise. Knows nothing of mels or tokens."""
