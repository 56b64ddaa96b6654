"""One instance per run folder. `lock_posix` and `lock_windows` have one interface."""

import os
import sys
from pathlib import Path

from sidecar.errors import ConfigError

if sys.platform == "win32":
    from sidecar.supervisor.lock_windows import try_lock
else:
    from sidecar.supervisor.lock_posix import try_lock


class InstanceLock:
    """The operating system's lock on a file: it ends with the process, however that ends."""

    def __init__(self, path: Path) -> None:
        """Make the run folder (0700) and the file. Raises ConfigError when that is impossible."""
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if path.parent.stat().st_mode & 0o077:
                path.parent.chmod(0o700)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise ConfigError(
                f"cannot use the run folder {path.parent}: {error.strerror}; point SIDECAR_HOME to a writable folder"
            ) from None

    def take(self) -> bool:
        """Whether this process holds the lock now. Never waits."""
        try:
            return try_lock(self._fd)
        except OSError as error:
            raise ConfigError(
                f"the run folder's file system cannot lock files: {error.strerror}; point SIDECAR_HOME to a local disk"
            ) from None

    def release(self) -> None:
        os.close(self._fd)
