"""The log file: what the server wrote on stderr, as it is, and the supervisor's own lines between."""

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from sidecar.errors import redact
from sidecar.supervisor.outbox import write_all

LOG_NAME = "sidecar.log"
LINE_LIMIT_BYTES = 65_536
READ_BYTES = 16_384
TAIL_BYTES = 4096
MASK = b"[token]"


class RotatingLog:
    """`sidecar.log`, then `sidecar.log.1` (newest) … `.files`. Writing never raises: a full disk costs lines only."""

    def __init__(self, path: Path, *, max_bytes: int, files: int) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._files = files
        self._fd = -1
        self._size = 0
        self._lost = 0
        self._lock = threading.Lock()

    def note(self, message: str) -> None:
        """One line of the supervisor's own, with a UTC timestamp."""
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
        line = f"{stamp}.{int(now % 1 * 1000):03d}Z supervisor[{os.getpid()}] {redact(message)}\n"
        self.write(line.encode(errors="replace"))

    def write(self, data: bytes) -> None:
        """Append whole lines; any bytes."""
        with self._lock:
            try:
                if self._fd < 0:
                    self._open()
                if self._size and self._size + len(data) > self._max_bytes:
                    self._rotate()
                if self._lost:
                    write_all(self._fd, f"[{self._lost} bytes of log were lost: the disk was full]\n".encode())
                    self._lost = 0
                write_all(self._fd, data)
                self._size += len(data)
            except OSError:
                self._lost += len(data)

    def close(self) -> None:
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
            self._fd = -1

    def _open(self) -> None:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._size = os.fstat(self._fd).st_size

    def _rotate(self) -> None:
        """A reader that keeps a file open makes this fail on Windows; the file then grows by one more round."""
        os.close(self._fd)
        self._fd = -1
        with contextlib.suppress(OSError):
            for number in range(self._files, 0, -1):
                older = self._numbered(number)
                newer = self._numbered(number - 1) if number > 1 else self.path
                with contextlib.suppress(FileNotFoundError):
                    newer.replace(older)
        self._open()
        self._size = 0

    def _numbered(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")


def read_blocks(fd: int, secret: bytes | None) -> Iterator[bytes]:
    """Whole lines, several at a time, until the end of the pipe, with `secret` masked and addresses' credentials too.

    A line without an end is cut at LINE_LIMIT_BYTES; what could be the start of the secret waits for the rest of it.
    """
    keep = len(secret) - 1 if secret else 0
    rest = b""
    while chunk := _read(fd):
        rest = mask(rest + chunk, secret)
        whole, newline, rest = rest.rpartition(b"\n")
        if newline:
            yield _clean(whole + newline)
        if len(rest) > LINE_LIMIT_BYTES:
            cut = len(rest) - keep
            yield _clean(rest[:cut] + b"\n")
            rest = rest[cut:]
    if rest:
        yield _clean(rest + b"\n")


def _clean(data: bytes) -> bytes:
    # Byte for byte: what is no UTF-8 stays as it is.
    return redact(data.decode("latin-1")).encode("latin-1") if b"@" in data else data


def mask(data: bytes, secret: bytes | None) -> bytes:
    return data.replace(secret, MASK) if secret else data


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, READ_BYTES)
    except OSError:  # Windows: the other end is gone
        return b""
