"""Tokenizers: from 16 kHz waves to semantic tokens. Independent of decoders."""
