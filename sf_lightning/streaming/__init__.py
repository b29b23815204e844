"""Decoding of token streams to audio streams, chunk by chunk. Independent of training."""
