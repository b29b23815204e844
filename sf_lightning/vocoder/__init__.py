"""Mel to wave: one protocol, Griffin-Lim without weights, BigVGAN with its own or Qwen2.5-Omni's."""
