"""Many trainings that answer one question: W&B's sweep files without its server."""
