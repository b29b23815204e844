"""Callbacks of a training run: validation by decoding, reports, checkpoints, preemption, throughput, watchdog."""
