"""Numbers that people write into settings: durations, and what fits where."""

import math
import re
from typing import Annotated, Any, get_args

from pydantic import Field
from pydantic.fields import FieldInfo

# Beyond these a number is a mistake. Infinity is none that a timer can count to.
LONGEST_S = 604_800.0
MOST_BYTES = 1 << 50

Delay = Annotated[float, Field(ge=0, le=LONGEST_S, allow_inf_nan=False)]

_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|s|m|h))+")
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_SHOWN = 80


def parse_duration_s(text: str) -> float:
    """Seconds of a number (s), "5m" or "1h30m", with or without a sign, as Ollama reads it. Raises ValueError."""
    unsigned = text.strip().lstrip("+-")
    if _DURATION.fullmatch(unsigned):
        seconds = sum(float(number) * _UNIT_S[unit] for number, unit in _PART.findall(unsigned))
    else:
        seconds = float(unsigned)
    if math.isnan(seconds):
        raise ValueError(f"{text!r} is not a number")
    return -seconds if text.strip().startswith("-") else seconds


def shortened(value: object) -> str:
    """A value as an error shows it."""
    shown = repr(value)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"


def fitting(field: FieldInfo) -> str:
    """What a setting that is a number takes; "" for one that is not."""
    limits: list[Any] = list(field.metadata)
    if field.annotation is int:
        kind = "a whole number"
    elif field.annotation is float:
        kind = "a number"
    elif isinstance(field.default, tuple) and field.default and isinstance(field.default[0], float):
        kind, limits = "numbers, comma-separated, each", list(get_args(Delay)[1].metadata)
    else:
        return ""
    words = {"gt": "over", "ge": "from", "lt": "under", "le": "to"}
    found = [
        f"{word} {getattr(limit, name):.15g}"
        for name, word in words.items()
        for limit in limits
        if hasattr(limit, name)
    ]
    return f"; it takes {' '.join([kind, *found])}"
