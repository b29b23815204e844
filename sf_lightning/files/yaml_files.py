"""YAML files as plain values, at a cost that the size of the file bounds: no code in a file runs."""

from pathlib import Path
from typing import Any

import yaml

from sf_lightning.files.foreign import require_regular

MAX_BYTES = 2**20
"""Largest accepted size of a YAML file."""

MAX_VALUES = 100_000
"""Largest accepted number of values, each counted as often as aliases repeat it."""


class BoundedLoader(yaml.SafeLoader):
    """Refuses a file whose aliases (`*name`) repeat more than `MAX_VALUES` values, or refer to themselves."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._sizes: dict[int, int] = {}
        self._total = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Returns the next node, and counts it with everything in it."""
        is_alias, before = self.check_event(yaml.AliasEvent), self._total
        mark = self.peek_event().start_mark
        self._total += not is_alias
        node = super().compose_node(parent, index)
        if is_alias:
            if id(node) not in self._sizes:
                raise yaml.composer.ComposerError(None, None, "an alias refers to what contains it", mark)
            self._total += self._sizes[id(node)]
        else:
            self._sizes[id(node)] = self._total - before
        if self._total > MAX_VALUES:
            raise yaml.composer.ComposerError(None, None, f"its aliases repeat more than {MAX_VALUES} values", mark)
        return node


def read_yaml(path: Path) -> Any:
    """Reads a YAML file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: with the file's name, if it is no regular file, too large, no UTF-8 or no YAML, or if it names
            a Python object or repeats too many values.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    require_regular(path)
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes: expected a YAML file of at most {MAX_BYTES}")
    try:
        return yaml.load(path.read_text(encoding="utf-8"), BoundedLoader)
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply") from None
    except (yaml.YAMLError, ValueError, TypeError, AttributeError) as error:  # of dates and numbers without sense
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())[:300]}") from error
