"""Filters of the clips of a corpus."""

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Filters:
    """Filters of the clips of a corpus; a clip without the field that a filter looks at is rejected.

    Args:
        languages: Accepted languages, such as ["en", "zh"]; empty for all.
        min_seconds: Shortest accepted duration.
        max_seconds: Longest accepted duration.
        min_dnsmos: Lowest accepted DNSMOS, the predicted quality in Emilia's metadata.
        blocked_speakers: Rejected speakers.

    Raises:
        ValueError: if the durations are negative or in the wrong order.
    """

    languages: tuple[str, ...] = ()
    min_seconds: float = 0.0
    max_seconds: float = math.inf
    min_dnsmos: float | None = None
    blocked_speakers: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if not 0 <= self.min_seconds <= self.max_seconds:
            raise ValueError(
                f"--min_seconds is {self.min_seconds}: expected 0 to --max_seconds, which is {self.max_seconds}"
            )

    def rejection_reason(self, fields: dict[str, Any]) -> str | None:
        """Returns why a clip with these fields is rejected, or None."""
        if self.languages and str(fields.get("language", "")).lower() not in map(str.lower, self.languages):
            return "language"
        if str(fields.get("speaker")) in self.blocked_speakers:
            return "blocked speaker"
        dnsmos = fields.get("dnsmos")
        if self.min_dnsmos is not None and not (isinstance(dnsmos, int | float) and dnsmos >= self.min_dnsmos):
            return "dnsmos"
        return None

    def accepts_duration(self, seconds: float) -> bool:
        """Returns whether a duration is neither too short nor too long."""
        return self.min_seconds <= seconds <= self.max_seconds
