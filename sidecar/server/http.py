"""uvicorn's HTTP protocol, with what a server that faces any local program needs besides."""

import asyncio
import re
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from sidecar.server.problem import problem

# A connection that sends no complete request head in this time is closed: it would hold a descriptor for ever.
_HEAD_S = 20.0
_UPGRADE = re.compile(rb"(?im)^upgrade(?=:[ \t]*h2c)")


class LocalHttpProtocol(HttpToolsProtocol):
    """Closes connections that say nothing, and answers clients that offer h2c in HTTP/1.1.

    The parser takes an `Upgrade: h2c` (sent unasked by Java's client and curl --http2) as the end of the request and
    loses its body. A server may ignore the offer, so the header is renamed before the parser sees it.
    """

    _silence: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._silence = self.loop.call_later(_HEAD_S, transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        self._heard()
        super().connection_lost(exc)

    def on_headers_complete(self) -> None:
        self._heard()
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        if b"h2c" in data:
            head, separator, body = data.partition(b"\r\n\r\n")
            data = _UPGRADE.sub(b"x-grade", head) + separator + body
        super().data_received(data)

    def send_400_response(self, msg: str) -> None:
        """As problem details, like every other error; which path it was about is not known."""
        response = problem(400, "bad_request", f"{msg.rstrip('.')}: this is no HTTP that can be read")
        headers = b"".join(name + b": " + value + b"\r\n" for name, value in response.raw_headers)
        self.transport.write(
            b"HTTP/1.1 400 Bad Request\r\n" + headers + b"connection: close\r\n\r\n" + bytes(response.body)
        )
        self.transport.close()

    def _heard(self) -> None:
        if self._silence is not None:
            self._silence.cancel()
            self._silence = None
