"""Tokenizers: from 16 kHz waves to semantic tokens. Knows nothing of decoders."""
