"""Corpora, shards, lanes and packs: from audio files to batches of blocks. Knows nothing of Lightning."""
