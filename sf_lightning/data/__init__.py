"""Shards, lanes and packs: from audio on disk to lists of blocks. Knows nothing of Lightning."""
