"""Corpora, shards, lanes and packs: from audio files to batches of blocks. Independent of Lightning."""
