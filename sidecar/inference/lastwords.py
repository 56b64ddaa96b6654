"""How a runner died, for people: its exit status, and the end of what it wrote to stderr."""

import signal
from collections.abc import Callable

_TAIL_BYTES = 4096


class LastWords:
    """Feed it stderr's bytes as they come; they go to the log line by line."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line = on_line
        self._tail = b""
        self._line = b""

    def feed(self, data: bytes) -> None:
        """A line that never ends is given out in pieces."""
        self._tail = (self._tail + data)[-_TAIL_BYTES:]
        *lines, self._line = (self._line + data).split(b"\n")
        if len(self._line) > _TAIL_BYTES:
            lines.append(self._line)
            self._line = b""
        for line in lines:
            self._on_line(line.decode("utf-8", "replace").rstrip())

    def __str__(self) -> str:
        """For the end of an error's message."""
        lines = self._tail.decode("utf-8", "replace").strip().splitlines()
        return f"; it last said: {lines[-1]}" if lines else ""


def exit_text(code: int | None) -> str:
    """What a return code says; negative ones are signals."""
    if code is not None and code < 0:
        try:
            return f"was killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"was killed by signal {-code}"
    return f"ended with exit code {code}"
