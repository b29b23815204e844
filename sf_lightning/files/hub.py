"""Repositories of the Hugging Face hub: an id where a path is expected."""

import json
import re
from pathlib import Path
from typing import Any

from sf_lightning.files.identify import (
    BIGVGAN_WEIGHTS,
    ECAPA_WEIGHTS,
    EXPORT_CONFIG,
    EXPORT_WEIGHTS,
    VOCODER_CONFIG,
    VOCODER_WEIGHTS,
)

SHARD_INDEX = "model.safetensors.index.json"
"""Names the shard of each tensor, in the folder of a model whose weights are in several safetensors files."""

FILES = [
    EXPORT_CONFIG,
    EXPORT_WEIGHTS,
    VOCODER_CONFIG,
    VOCODER_WEIGHTS,
    BIGVGAN_WEIGHTS,
    ECAPA_WEIGHTS,
    SHARD_INDEX,
]

HUB_ID = re.compile(r"(?P<repository>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>\w[\w./-]*))?")
FILE_SUFFIXES = {".ckpt", ".pt", ".pth", ".safetensors", ".yaml"}


def local_path(
    name: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
) -> Path:
    """Returns a path that exists, or the local copy of a repository of the Hugging Face hub, which is downloaded.

    Args:
        name: A file or folder; or, where there is none, the id of a repository, `OWNER/NAME` or
            `OWNER/NAME@REVISION`.
        revision: Branch, tag or commit of the repository, unless the id names one; by default its main branch.
        token: Access token; by default that of `hf auth login` or of HF_TOKEN.
        cache_dir: Folder of the copies; by default that under HF_HOME.

    Raises:
        FileNotFoundError: if it is neither, or the repository cannot be downloaded.
    """
    if Path(name).exists():
        return Path(name)
    hub_id = HUB_ID.fullmatch(str(name))
    if hub_id is None or Path(name).suffix in FILE_SUFFIXES:
        raise FileNotFoundError(f"no file or folder {name}; a repository of the Hugging Face hub is OWNER/NAME")
    from huggingface_hub import snapshot_download  # slow to import, and seldom needed

    options: dict[str, Any] = {"revision": hub_id["revision"] or revision, "token": token, "cache_dir": cache_dir}
    try:
        folder = Path(snapshot_download(hub_id["repository"], allow_patterns=FILES, **options))
        if (folder / SHARD_INDEX).is_file():  # of Qwen2.5-Omni, only the shards that hold its token2wav
            shards = json.loads((folder / SHARD_INDEX).read_text(encoding="utf-8"))["weight_map"]
            needed = sorted({shard for tensor, shard in shards.items() if "code2wav" in tensor})
            snapshot_download(hub_id["repository"], allow_patterns=needed, **options)
        return folder
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise FileNotFoundError(f"no file or folder {name}, and the hub does not provide it ({reason})") from error
