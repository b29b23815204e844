"""Measures of speech quality. Knows nothing of how the speech was generated."""
