"""The listening socket: bound once, before the first server, and kept through every restart."""

import contextlib
import errno
import socket

from sidecar.errors import ConfigError
from sidecar.supervisor import proctree

BACKLOG = 2048  # what clients may queue up while no server runs; the kernel caps it (net.core.somaxconn)


def listen(host: str, port: int) -> socket.socket:
    """Bind and listen; port 0 takes a free one. Raises ConfigError that names the port and, if known, its holder."""
    address = "127.0.0.1" if host == "localhost" else host
    listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    try:
        proctree.prepare_listener(listener)
        listener.bind((address, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(_explain(address, port, error)) from None
    return listener


def _explain(host: str, port: int, error: OSError) -> str:
    cure = "choose another --port, or --port 0 for a free one"
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is taken{_holder(port)}; {cure}"
    if error.errno == errno.EACCES:
        return f"port {port} on {host} is reserved by the system; {cure}"
    return f"cannot listen on {host} port {port}: {error.strerror}; {cure}"


def _holder(port: int) -> str:
    """` by name (pid 1)`, or nothing: other users' sockets show no pid, and macOS asks for root."""
    import psutil

    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections(kind="tcp"):
            at = connection.laddr
            if at and at.port == port and connection.status == psutil.CONN_LISTEN and connection.pid:
                return f" by {psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return ""
