"""Mel to wave: one protocol; Griffin-Lim, BigVGAN, and the BigVGAN of Qwen2.5-Omni."""
