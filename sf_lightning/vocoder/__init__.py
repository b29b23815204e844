"""Mel to wave: one protocol, Griffin-Lim without weights, BigVGAN with them."""
