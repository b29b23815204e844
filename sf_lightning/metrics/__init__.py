"""How good it sounds, as torchmetrics metrics. Knows nothing of how the sound was made."""
