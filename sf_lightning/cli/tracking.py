"""Where W&B runs go: to its server if a key is known, else to the run's folder, to be sent later."""

import os
from netrc import NetrcParseError, netrc
from urllib.parse import urlparse


def offline_without_key() -> None:
    """Keeps the runs of this process offline unless a key is known or WANDB_MODE says what to do.

    W&B reads its environment once: to be called before the first run of the process.
    """
    if not _key_is_known():
        os.environ.setdefault("WANDB_MODE", "offline")


def _key_is_known() -> bool:
    """Whether W&B could upload: a key in the environment or in ~/.netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return host is not None and netrc().authenticators(host) is not None
    except (OSError, NetrcParseError):
        return False
