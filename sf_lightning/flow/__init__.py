"""Conditional flow matching: path, loss, guidance, solver, noise. Independent of mels and tokens."""
