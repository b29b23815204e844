"""Waves and mel spectrograms. Knows nothing of tokens, networks or shards."""
