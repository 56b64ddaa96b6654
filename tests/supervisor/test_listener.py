"""The listening socket."""

import os
import socket

import pytest

from sidecar.errors import ConfigError
from sidecar.supervisor.listener import listen
from sidecar.supervisor.probe import Endpoint


def test_a_free_port_is_found_and_queues_clients() -> None:
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname(), 1):
        assert listener.getsockname()[0] == "127.0.0.1"
        assert not listener.get_inheritable()


def test_localhost_is_the_ipv4_loopback() -> None:
    with listen("localhost", 0) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"


def test_ipv6_loopback_and_its_url() -> None:
    try:
        listener = listen("::1", 0)
    except ConfigError:
        with socket.socket(socket.AF_INET6) as probe, pytest.raises(OSError):
            probe.bind(("::1", 0))  # this machine has none
        return
    with listener:
        assert Endpoint("::1", 80, None, "").base_url == "http://[::1]:80"


def test_a_port_is_taken_again_right_after_its_connections_closed() -> None:
    port = 0
    for _ in range(2):
        with listen("127.0.0.1", port) as listener:
            port = listener.getsockname()[1]
            client = socket.create_connection(("127.0.0.1", port), 1)
            accepted, _ = listener.accept()
            accepted.close()  # our side first: TIME_WAIT is ours
            client.close()


def test_a_taken_port_names_itself_its_holder_and_the_cure() -> None:
    with listen("127.0.0.1", 0) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(ConfigError) as error:
            listen("127.0.0.1", port)
    message = error.value.message
    assert f"port {port}" in message and "--port" in message and f"pid {os.getpid()}" in message
    assert "\n" not in message
