"""Filters for messages of other libraries that tell a user of the commands nothing: each by origin and wording.

Errors, and this package's own warnings, always pass.
"""

import logging
import os
import warnings

LOG_MESSAGES = {
    "lightning.pytorch.utilities.rank_zero": (
        "💡 Tip",  # adverts
        "GPU available",
        "TPU available",
        "HPU available",
        "IPU available",
        "Using bfloat16 Automatic Mixed Precision",
        "`Trainer.fit` stopped: `max_steps",
        "Trainer will use only 1 of",
        "You are using the plain ModelCheckpoint callback",
        "Restoring states from the checkpoint",
        "Restored all states from the checkpoint",
        "Loaded model weights from the checkpoint",
        "Starting with v2.2.0",
        "Seed set to",
        "Loading `train_dataloader` to estimate",
    ),
    "lightning.pytorch.trainer.connectors.checkpoint_connector": ("`weights_only` was not set",),
    "lightning.fabric.utilities.seed": ("Seed set to", "No seed found"),
    "lightning.fabric.utilities.rank_zero": ("Using bfloat16 Automatic Mixed Precision", "Seed set to"),
    "lightning.fabric.utilities.distributed": (
        "Initializing distributed: GLOBAL_RANK",
        "-----",
        "distributed_backend",
    ),
}
"""Beginnings of log records below the level of an error, by the name of the logger."""

WARNINGS = (
    # (beginning of the message, a regular expression; module that the warning names, likewise)
    (r"LightningCLI's args parameter", ""),  # arguments that appear twice only have a subcommand in front here
    (r"A window was not provided", r"torch\."),  # spectrograms of the bigvgan package
    (r".*does not have many workers", r"lightning\."),  # one loader process per lane is enough
    (r".*IterableDataset.*has `__len__` defined", r"lightning\."),
    (r"`isinstance\(treespec, LeafSpec\)` is deprecated", ""),
    (
        r"The `srun` command is available on your system but is not used",
        r"lightning\.",
    ),  # also in an interactive job
    (r"Checkpoint directory .* exists and is not empty", r"lightning\."),  # a resumed run
    (r"There is a wandb run already in progress", r"lightning\."),
    (r".*pkg_resources is deprecated", ""),
    (r"The number of training batches", r"lightning\."),
    (r".*torchaudio\._backend", ""),
    (
        r"You're resuming from a checkpoint that ended before",
        r"lightning\.",
    ),  # each checkpoint: the stream is endless
)


def _is_wanted(record: logging.LogRecord) -> bool:
    beginnings = LOG_MESSAGES.get(record.name, ())
    return record.levelno >= logging.ERROR or not record.getMessage().lstrip().startswith(beginnings)


def silence_libraries() -> None:
    """Installs the filters in this process; called by a command before it starts to work."""
    for name in LOG_MESSAGES:
        logging.getLogger(name).addFilter(_is_wanted)
    for message, module in WARNINGS:
        warnings.filterwarnings("ignore", message, module=module)
    os.environ.setdefault("WANDB_SHOW_INFO", "false")  # its adverts; its warnings and errors pass
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
