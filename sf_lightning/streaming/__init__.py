"""A stream of tokens to a stream of sound, chunk by chunk. Knows nothing of training."""
