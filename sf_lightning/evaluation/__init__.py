"""Evaluation of trained decoders: decoding and scoring of held-out clips, tables, reports and listening tests.

Independent of training and of Lightning; validation in a training run uses it.
"""
