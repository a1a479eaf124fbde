"""Values from JSON files that anyone may have written, checked and bounded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

MAX_TITLE, MAX_TEXT = 60, 300  # characters


def text(value: Any, length: int) -> str:
    """A string of at most `length` characters; empty for anything that is not a string."""
    return value[:length] if isinstance(value, str) else ""


def mapping(value: Any) -> Mapping[str, Any]:
    """The value itself where it is a dict, else an empty one."""
    return value if isinstance(value, dict) else {}


def entries(value: Any) -> list[Mapping[str, Any]]:
    """The dicts of a list; none for anything that is not a list."""
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def numbers(values: dict | None) -> dict[str, float]:
    """The finite numbers of a dict; a metric that could not be computed is left out."""
    return {
        str(key): float(value)
        for key, value in (values or {}).items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    }
