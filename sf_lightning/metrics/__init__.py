"""Measures of speech quality. Independent of how the speech was generated."""
