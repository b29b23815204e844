"""Sweeps: many training runs that differ in a few options, described by a W&B sweep file, without W&B's server."""
