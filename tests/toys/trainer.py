"""Arguments of Lightning trainers."""

from typing import Any

QUIET_TRAINER: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}
"""A CPU trainer that prints, logs and saves nothing."""
