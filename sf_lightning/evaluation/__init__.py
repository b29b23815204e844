"""Judging trained decoders side by side: what is decoded, how it is scored, tables and a page to hear it on.

Knows nothing of training and of Lightning; a training run uses its pages.
"""
