"""Reading the log file: its last lines, and what is added to it across rotation."""

import os
import time
from collections.abc import Callable
from pathlib import Path

POLL_S = 0.25
BLOCK_BYTES = 65_536


def last_lines(path: Path, count: int) -> tuple[bytes, int]:
    """The last `count` lines and the offset after them; nothing when there is no file."""
    try:
        with path.open("rb") as file:
            end = position = file.seek(0, os.SEEK_END)
            data = b""
            while position > 0 and data.count(b"\n") <= count:
                start = max(0, position - BLOCK_BYTES)
                file.seek(start)
                data = file.read(position - start) + data
                position = start
    except FileNotFoundError:
        return b"", 0
    lines = data.splitlines(keepends=True)
    return b"".join(lines[len(lines) - count :] if 0 < count < len(lines) else lines if count else []), end


def follow(path: Path, offset: int, emit: Callable[[bytes], None]) -> None:
    """Emit what is added after `offset`, for ever. A file that was rotated away is read to its end first."""
    while True:
        try:
            file = path.open("rb")
        except FileNotFoundError:
            time.sleep(POLL_S)
            continue
        with file:
            file.seek(offset)
            while True:
                rotated = _is_other_file(path, file.fileno())  # asked before reading: nothing is added after that
                while data := file.read(BLOCK_BYTES):
                    emit(data)
                if rotated:
                    break
                time.sleep(POLL_S)
        offset = 0


def _is_other_file(path: Path, fd: int) -> bool:
    try:
        now = path.stat()
    except FileNotFoundError:
        return False  # between the two renames of a rotation
    ours = os.fstat(fd)
    return (now.st_ino, now.st_dev) != (ours.st_ino, ours.st_dev)
