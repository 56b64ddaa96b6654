"""The server's line to the supervisor: control messages on stdin, status messages on stdout, one JSON object a line."""

import asyncio
import base64
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

import msgspec

from sidecar.errors import ConfigError

log = logging.getLogger("sidecar.server")


def shared_socket(share: bytes) -> socket.socket:
    """The socket behind what `socket.share` gave to the supervisor (Windows)."""
    if sys.platform != "win32":
        raise ConfigError("sockets are shared by descriptor here")
    return socket.fromshare(share)


class Control:
    """Takes stdin and stdout for itself when made: a print anywhere else then reaches stderr."""

    def __init__(self) -> None:
        self._lines = open(os.dup(0), "rb")  # noqa: SIM115 (read until the process ends)
        self._out_fd = os.dup(1)
        with open(os.devnull, "rb") as nothing:
            os.dup2(nothing.fileno(), 0)
        os.dup2(2, 1)
        sys.stdout = sys.stderr

    def emit(self, event: str, **fields: Any) -> None:
        """Tell the supervisor; one write, so that lines never mix."""
        try:
            os.write(self._out_fd, msgspec.json.encode({"event": event, **fields}) + b"\n")
        except BrokenPipeError:
            log.warning("the supervisor no longer listens")

    def take_shared_socket(self) -> bytes | None:
        """Windows: the listening socket arrives as the first line, because it is shared for our process id."""
        if sys.platform != "win32":
            return None
        share: str | None = msgspec.json.decode(self._lines.readline(), type=dict[str, Any]).get("share")
        return base64.b64decode(share) if share else None

    def listen(self, on_message: Callable[[dict[str, Any]], None]) -> None:
        """Deliver messages into the running event loop. EOF means that the supervisor died: we end at once."""
        loop = asyncio.get_running_loop()

        def read() -> None:
            for line in self._lines:
                try:
                    message = msgspec.json.decode(line, type=dict[str, Any])
                except msgspec.DecodeError:
                    log.warning("control line that is no JSON ignored")
                    continue
                loop.call_soon_threadsafe(on_message, message)
            # Runners see the end of their own stdin when this process is gone.
            os._exit(1)

        threading.Thread(target=read, name="control", daemon=True).start()
