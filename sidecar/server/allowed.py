"""Files that a request names by path: only inside allowed folders, only regular ones, links resolved."""

import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from sidecar.errors import AudioNotFoundError

# What a platform lacks is 0: Windows has no such links and no terminals to seize, POSIX no text mode.
_FLAGS = os.O_RDONLY
for _name in ("O_CLOEXEC", "O_NONBLOCK", "O_NOFOLLOW", "O_NOCTTY", "O_BINARY", "O_NOINHERIT"):
    _FLAGS |= getattr(os, _name, 0)
_MAX_CHARACTERS = 4096


def open_allowed(path: str, folders: Iterable[Path]) -> BinaryIO:
    """Open for reading. Raises AudioNotFoundError, in the same words whether or not a file outside exists."""
    # Before the system sees it: merely looking at a Windows share sends the user's credentials to whoever serves it.
    if path.startswith(("\\\\", "//", "\\/", "/\\")):
        raise _refused(path, "network shares and device paths are not read")
    if "\0" in path or len(path) > _MAX_CHARACTERS or not os.path.isabs(path):
        raise _refused(path, "give an absolute path")
    real = os.path.realpath(path)
    allowed = [os.path.realpath(folder) for folder in folders]
    if not any(_inside(real, folder) for folder in allowed):
        told = f"only files inside {' or '.join(allowed)} are read: set SIDECAR_AUDIO_FOLDERS, or send the audio itself"
        raise _refused(path, told)
    try:
        # Not even opened if it is anything else: opening a device may do things. A FIFO would wait for a writer.
        if not stat.S_ISREG(os.lstat(real).st_mode):
            raise _refused(path, "it is no regular file")
        descriptor = os.open(real, _FLAGS)
    except FileNotFoundError:
        raise _refused(path) from None
    except OSError as error:
        raise _refused(path, str(error.strerror)) from None
    # Somebody may have put a link in the way between looking and opening.
    if os.path.realpath(real) == real and os.path.samestat(os.fstat(descriptor), os.lstat(real)):
        return open(descriptor, "rb")
    os.close(descriptor)
    raise _refused(path, "it is no regular file")


def _inside(path: str, folder: str) -> bool:
    return Path(os.path.normcase(path)).is_relative_to(os.path.normcase(folder))


def _refused(path: str, reason: str = "") -> AudioNotFoundError:
    shown = "".join(letter if letter.isprintable() else "�" for letter in path[:300])
    return AudioNotFoundError(f"Audio file not found: {shown}{f' ({reason})' if reason else ''}")
