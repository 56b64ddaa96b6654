"""The gate every request passes: Host, Origin, token, body size; on the way out request id, access log, metrics.

One pure ASGI layer, because each layer is a cost to every request.
"""

import asyncio
import contextlib
import hmac
import logging
import os
import re
import time
from collections.abc import Iterable

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sidecar.errors import BadRequestError, BodyTooLargeError, ForbiddenError, SidecarError, UnauthorizedError
from sidecar.server.accesslog import AccessLog
from sidecar.server.metrics import Metrics
from sidecar.server.problem import from_error

log = logging.getLogger("sidecar.server")

OPEN_PATHS = frozenset({"/health/live"})
SUBPROTOCOL = "bearer."
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
# A client that is still sending cannot read our answer: what it sends is thrown away first, up to this much.
_DISCARD_BYTES = 256 * 1024 * 1024
_DISCARD_S = 10.0
_CORS_METHODS = b"GET, POST, DELETE, OPTIONS"
_CORS_HEADERS = b"Authorization, Content-Type, X-Request-ID"


def allowed_hosts(port: int) -> frozenset[bytes]:
    """Host header values of this computer's loopback; anything else is a DNS-rebinding page."""
    names = ("127.0.0.1", "localhost", "[::1]")
    bare = names if port == 80 else ()  # clients leave the default port out
    return frozenset(name.encode() for name in (*bare, *(f"{name}:{port}" for name in names)))


class _Headers:
    """The few headers the gate looks at, picked in one pass."""

    __slots__ = ("authorization", "doubled", "expect", "host", "length", "origin", "protocols", "request_id")

    def __init__(self, raw: Iterable[tuple[bytes, bytes]]) -> None:
        self.host: bytes | None = None
        self.origin: bytes | None = None
        self.authorization: bytes | None = None
        self.length: bytes | None = None
        self.request_id: bytes | None = None
        self.protocols: bytes | None = None
        self.expect: bytes | None = None
        # Two of what decides about access: a proxy before us might have looked at the other one.
        self.doubled = False
        for name, value in raw:
            slot = _WATCHED.get(name)
            if slot is not None:
                if slot in _SINGLE and getattr(self, slot) is not None:
                    self.doubled = True
                setattr(self, slot, value)


_WATCHED = {
    b"host": "host",
    b"origin": "origin",
    b"authorization": "authorization",
    b"content-length": "length",
    b"x-request-id": "request_id",
    b"sec-websocket-protocol": "protocols",
    b"expect": "expect",
}
_SINGLE = frozenset({"host", "origin", "authorization"})


class Gate:
    """ASGI middleware. `token` None means `--auth off`: no token is asked for, and no browser origin is let in."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        token: str | None,
        port: int,
        origins: Iterable[str],
        max_body_bytes: int,
        metrics: Metrics,
        access: AccessLog,
    ) -> None:
        self._app = app
        self._bearer = f"Bearer {token}".encode() if token else None
        self._protocol = f"{SUBPROTOCOL}{token}".encode() if token else None
        self._hosts = allowed_hosts(port)
        self._origins = frozenset(origin.encode() for origin in origins) if token else frozenset()
        self._max_body_bytes = max_body_bytes
        self._metrics = metrics
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        headers = _Headers(scope["headers"])
        given = headers.request_id
        request_id = given if given and _REQUEST_ID.fullmatch(given) else os.urandom(8).hex().encode()
        status = 0

        async def tagged_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id), *self._cors(headers.origin)]
            await send(message)

        try:
            refusal = self._refusal(scope, headers)
            if refusal is not None:
                await self._refuse(refusal, headers, scope, receive, tagged_send)
            elif scope["method"] == "OPTIONS" and headers.origin is not None:
                await _preflight()(scope, receive, tagged_send)
            else:
                guarded = receive if headers.length is not None else _Counted(receive, self._max_body_bytes)
                await self._app(scope, guarded, tagged_send)
        finally:
            took_s = time.perf_counter() - started
            route = getattr(scope.get("route"), "path", "unmatched")
            self._metrics.observe_request(route, status, took_s)
            # Health probes come every few seconds for ever and would push everything else out of the log.
            if not (status == 200 and scope["path"].startswith("/health")):
                self._access.write(scope["method"], scope["path"], status, took_s, request_id)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = _Headers(scope["headers"])
        offered = [part.strip() for part in (headers.protocols or b"").split(b",")]
        error = self._host_or_origin(headers)
        if error is None and self._bearer and not self._authorised(headers) and not self._offers_token(offered):
            error = UnauthorizedError("the WebSocket's token is missing or wrong")
        if error is not None:
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": error.code})
            return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope, headers: _Headers) -> SidecarError | None:
        error = self._host_or_origin(headers)
        if error is not None:
            return error
        preflight = scope["method"] == "OPTIONS" and headers.origin is not None
        if self._bearer and not preflight and scope["path"] not in OPEN_PATHS and not self._authorised(headers):
            return UnauthorizedError(
                "token missing or wrong; send `Authorization: Bearer <token>` from the handshake file"
            )
        if headers.length is not None and int(headers.length) > self._max_body_bytes:
            limit = f"the limit is {self._max_body_bytes} (SIDECAR_MAX_BODY_BYTES)"
            return BodyTooLargeError(f"the body has {int(headers.length)} bytes; {limit}")
        return None

    def _host_or_origin(self, headers: _Headers) -> SidecarError | None:
        if headers.doubled:
            return BadRequestError("Host, Origin or Authorization is given twice")
        # Host before Origin and token: a rebound name must not even learn that a token is wanted.
        if headers.host not in self._hosts:
            return ForbiddenError("Host is not this computer's loopback address and port")
        if headers.origin is not None and headers.origin not in self._origins:
            return ForbiddenError("this browser origin is not allowed; add its exact value to ALLOWED_ORIGINS")
        return None

    def _authorised(self, headers: _Headers) -> bool:
        return self._bearer is not None and hmac.compare_digest(headers.authorization or b"", self._bearer)

    def _offers_token(self, offered: list[bytes]) -> bool:
        assert self._protocol is not None
        return any([hmac.compare_digest(protocol, self._protocol) for protocol in offered])

    async def _refuse(self, error: SidecarError, headers: _Headers, scope: Scope, receive: Receive, send: Send) -> None:
        response = from_error(error)
        if headers.length not in (None, b"0") or scope["method"] in ("POST", "PUT", "PATCH"):
            response.headers["connection"] = "close"
            if headers.expect is None:  # a client that waits for "100 Continue" has sent nothing, and need not
                await _discard(receive)
        await response(scope, receive, send)

    def _cors(self, origin: bytes | None) -> list[tuple[bytes, bytes]]:
        if origin is None or origin not in self._origins:
            return []
        return [
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", b"X-Request-ID, Retry-After"),
            (b"vary", b"Origin"),
        ]


class _Counted:
    """`receive` for a body of unannounced length; raises BodyTooLargeError past the limit."""

    def __init__(self, receive: Receive, limit_bytes: int) -> None:
        self._receive = receive
        self._limit_bytes = limit_bytes
        self._seen_bytes = 0

    async def __call__(self) -> Message:
        message = await self._receive()
        self._seen_bytes += len(message.get("body", b""))
        if self._seen_bytes > self._limit_bytes:
            await _discard(self._receive)
            raise BodyTooLargeError(f"the body is over the limit of {self._limit_bytes} bytes (SIDECAR_MAX_BODY_BYTES)")
        return message


async def _discard(receive: Receive) -> None:
    async def read() -> None:
        seen_bytes = 0
        more = True
        while more and seen_bytes < _DISCARD_BYTES:
            message = await receive()
            seen_bytes += len(message.get("body", b""))
            more = message.get("more_body", False)

    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(read(), _DISCARD_S)


def _preflight() -> Response:
    headers = {
        "access-control-allow-methods": _CORS_METHODS.decode(),
        "access-control-allow-headers": _CORS_HEADERS.decode(),
        "access-control-max-age": "600",
        # Chromium's private network access: the page asks before it talks to loopback.
        "access-control-allow-private-network": "true",
    }
    return Response(status_code=204, headers=headers)
