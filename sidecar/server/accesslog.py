"""Access log: one line a request, without query, headers or body, so that nothing secret can be in it.

Lines are gathered and written together: a write a request would wake the supervisor as often.
"""

import asyncio
import sys
import time

from sidecar.server.logs import stamp

_FLUSH_S = 0.2
_MAX_PENDING = 512


class AccessLog:
    """Buffers for at most 0.2 s; the timer runs only while there is something to write."""

    def __init__(self, enabled: bool) -> None:
        self._lines: list[str] = []
        self._enabled = enabled

    def write(self, method: str, path: str, status: int, took_s: float, request_id: bytes) -> None:
        """Record one request. The path is shown percent-encoded as far as it could break a log line."""
        if not self._enabled:
            return
        if not self._lines:
            asyncio.get_running_loop().call_later(_FLUSH_S, self.flush)
        clean = path if path.isprintable() and len(path) <= 200 else ascii(path[:200])
        self._lines.append(f"{method} {clean} {status} {took_s * 1000:.1f}ms {request_id.decode('ascii')}")
        if len(self._lines) >= _MAX_PENDING:
            self.flush()

    def flush(self) -> None:
        """Write what is pending."""
        if self._lines:
            now = stamp(time.time())
            sys.stderr.write("".join(f"{now} INFO access {line}\n" for line in self._lines))
            sys.stderr.flush()
            self._lines.clear()
