"""Tokenizers: 16 kHz waves to semantic tokens. Knows nothing of the network that turns them back."""
