"""HTTP to our own server, and the hang probe."""

import queue
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from sidecar.supervisor.events import Event, Probed
from sidecar.supervisor.probe import Endpoint, ProbeThread

DEADLINE_S = 5.0
GOOD = b'HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n{"instance_id": "me"}'


@contextmanager
def server(*answers: bytes) -> Iterator[tuple[Endpoint, list[bytes]]]:
    """Answers the connections in order; the last answer repeats. An empty one stays silent until the end."""
    asked: list[bytes] = []
    silent: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run() -> None:
            for number in range(1000):
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                asked.append(connection.recv(4096))
                answer = answers[min(number, len(answers) - 1)]
                if not answer:
                    silent.append(connection)
                    continue
                connection.sendall(answer)
                connection.close()

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield Endpoint("127.0.0.1", listener.getsockname()[1], "t0ken", "me"), asked
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in silent:
                connection.close()


def test_the_request_is_authenticated_and_names_its_host() -> None:
    with server(GOOD) as (endpoint, asked):
        assert endpoint.ask_health(DEADLINE_S) == ""
    lines = asked[0].decode().split("\r\n")
    assert lines[0] == "GET /health HTTP/1.0"
    assert f"Host: 127.0.0.1:{endpoint.port}" in lines
    assert "Authorization: Bearer t0ken" in lines


def test_without_a_token_no_header() -> None:
    with server(GOOD) as (endpoint, asked):
        assert Endpoint(endpoint.host, endpoint.port, None, "me").ask_health(DEADLINE_S) == ""
    assert b"Authorization" not in asked[0]


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (b"HTTP/1.0 503 no\r\n\r\n{}", "status 503"),
        (b'HTTP/1.0 200 OK\r\n\r\n{"instance_id": "somebody else"}', "another instance_id"),
        (b"HTTP/1.0 200 OK\r\n\r\nrubbish", "JSONDecodeError"),
        (b"HTTP/1.0 200 OK\r\n\r\n[]", "AttributeError"),
        (b"rubbish", "status 0"),
        (b"rubb ish", "ValueError"),
        (b"", "TimeoutError"),
    ],
)
def test_what_is_no_answer(answer: bytes, problem: str) -> None:
    with server(answer) as (endpoint, _):
        assert problem in endpoint.ask_health(DEADLINE_S if answer else 0.2)


def test_refused() -> None:
    with socket.socket() as held:  # bound and not listening: nobody else gets the port meanwhile
        held.bind(("127.0.0.1", 0))
        endpoint = Endpoint("127.0.0.1", held.getsockname()[1], "t0ken", "me")
        assert "ConnectionRefusedError" in endpoint.ask_health(DEADLINE_S)


class Patient(Endpoint):
    """Asks for real, and waits for the answer longer than the thread's short interval."""

    def ask_health(self, timeout_s: float) -> str:
        return super().ask_health(DEADLINE_S)


def test_the_thread_reports_the_first_answer_every_miss_and_the_return() -> None:
    bad = b"HTTP/1.0 500 no\r\n\r\n"
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    with server(GOOD, GOOD, bad, bad, GOOD) as (endpoint, asked):
        patient = Patient(endpoint.host, endpoint.port, endpoint.token, endpoint.instance_id)
        probe = ProbeThread(patient, 0.02, 7, events.put)
        got = [events.get(timeout=DEADLINE_S) for _ in range(4)]
        probe.stop()
    assert [event.alive for event in got if isinstance(event, Probed)] == [True, False, False, True]
    assert got[1] == Probed(7, False, "status 500")
    assert len(asked) >= 5
