"""What a test found out, and how it reads."""

from dataclasses import dataclass, field
from typing import Any, Literal

_WIDEST = 160  # of a detail in a line; --json has all of it

Level = Literal["ok", "info", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One line: `warn` works but could be better, `fail` does not work, `info` is good to know."""

    level: Level
    what: str
    detail: str = ""
    cure: str = ""
    figures: dict[str, Any] = field(default_factory=dict)
    """For programs; times in ms, sizes in bytes."""

    def line(self, test: str) -> str:
        """For people."""
        text = f"{self.level:<4}  {test:<11}  {self.what}"
        text += f": {self.detail[:_WIDEST]}{'…' if len(self.detail) > _WIDEST else ''}" if self.detail else ""
        return text + (f"\n{'':<19}cure: {self.cure}" if self.cure else "")
