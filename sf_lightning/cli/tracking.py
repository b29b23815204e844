"""W&B mode: online if an API key is configured, else offline, to be uploaded later with `wandb sync`."""

import os
from netrc import NetrcParseError, netrc
from urllib.parse import urlparse


def offline_without_key() -> None:
    """Sets WANDB_MODE=offline unless it is set already or an API key is configured.

    W&B reads its environment once, so this must be called before the first W&B run of the process.
    """
    if not _has_key():
        os.environ.setdefault("WANDB_MODE", "offline")


def _has_key() -> bool:
    """Returns whether the environment or ~/.netrc has an API key for W&B's server."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return host is not None and netrc().authenticators(host) is not None
    except (OSError, NetrcParseError):
        return False
