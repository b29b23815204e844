"""Waves and mel spectrograms. Independent of tokens, networks and shards."""
