"""HTTP to the instance that is examined. Never through a proxy: it is on this computer."""

import http.client
import json
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from sidecar.supervisor.handshake import Handshake

TIMEOUT_S = 60.0


class Answer(NamedTuple):
    """One response; `took_ms` from the first byte sent to the last one read."""

    status: int
    headers: dict[str, str]
    body: bytes
    took_ms: float

    def json(self) -> Any:
        """The body, or None where it is no JSON."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None

    def problem(self) -> tuple[str, str]:
        """(code, detail) of an error in our shape, OpenAI's or the Open Inference Protocol's; else empty."""
        body = self.json()
        match body:
            case {"code": str(code), "detail": str(detail)}:
                return code, detail
            case {"error": {"message": str(message), **rest}}:
                return str(rest.get("code") or rest.get("type") or "error"), message
            case {"error": str(message)}:
                return "error", message
        return "", ""


class Client:
    """One keep-alive connection. Not safe between threads: each takes a client of its own."""

    def __init__(self, handshake: Handshake) -> None:
        self.handshake = handshake
        self._connection = http.client.HTTPConnection(handshake.host, handshake.port, timeout=TIMEOUT_S)

    def connect(self) -> None:
        """Open the connection now. Raises OSError."""
        self._connection.connect()

    def call(self, method: str, path: str, body: object = None, *, headers: Mapping[str, str] | None = None) -> Answer:
        """One request; a dict or list is sent as JSON, bytes as they are. Raises OSError, http.client.HTTPException.

        `headers` are added to the defaults; the value "" takes a default away.
        """
        sent = {"Authorization": f"Bearer {self.handshake.token}"} if self.handshake.token else {}
        if isinstance(body, dict | list):
            body = json.dumps(body).encode()
            sent["Content-Type"] = "application/json"
        wanted = {name: value for name, value in {**sent, **(headers or {})}.items() if value}
        assert body is None or isinstance(body, bytes)
        started = time.perf_counter()
        try:
            self._connection.request(method, path, body, wanted)
            response = self._connection.getresponse()
            # An event stream has no end: its first bytes are the answer.
            streaming = "event-stream" in response.headers.get("Content-Type", "")
            content = response.read1(65_536) if streaming else response.read()
        except BaseException:
            self._connection.close()
            raise
        if streaming:
            self._connection.close()
        took_ms = (time.perf_counter() - started) * 1000
        return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, content, took_ms)

    def close(self) -> None:
        self._connection.close()
