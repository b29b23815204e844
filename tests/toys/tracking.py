"""W&B's offline files: waits until they are written, and reads them."""

import time
from collections.abc import Iterator
from pathlib import Path


def wandb_records(path: Path) -> Iterator[bytes]:
    """Yields the records of an offline run: a LevelDB log of 32 KiB blocks, 7 header bytes before each fragment."""
    content, at, joined = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        joined += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a full record, or its last fragment
            yield joined
            joined = b""


def wait_for_wandb(run: Path) -> None:
    """Waits for W&B's service, which may close the file of a run after `finish` has returned."""
    before, deadline = None, time.monotonic() + 60
    while time.monotonic() < deadline:
        sizes = [path.stat().st_size for path in run.glob("wandb/offline-run-*/*.wandb")]
        if sizes == before and min(sizes) > 7:  # more than a header
            return
        before = sizes
        time.sleep(1)
    raise TimeoutError(f"W&B's service still writes to {run}: {before}")
