"""The gate every request passes: Host, Origin, token, body size; on the way out request id, access log, metrics.

One pure ASGI layer, because each layer is a cost to every request.
"""

import hmac
import logging
import os
import re
import time
from collections.abc import Iterable

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sidecar.errors import (
    BadRequestError,
    BodyTooLargeError,
    ForbiddenError,
    RateLimitedError,
    SidecarError,
    UnauthorizedError,
    UnsupportedEncodingError,
)
from sidecar.server.accesslog import AccessLog
from sidecar.server.body import PACKINGS, BodyLimit, Counted, discard
from sidecar.server.metrics import Metrics
from sidecar.server.problem import from_error
from sidecar.server.ratelimit import RateLimit
from sidecar.server.sockets import SUBPROTOCOL, authenticate, echoing

log = logging.getLogger("sidecar.server")

OPEN_PATHS = frozenset({"/health/live"})
# Asking whether it lives, and stopping it, must work whatever else a client has done.
_UNLIMITED_PATHS = frozenset(
    {"/health", "/health/live", "/api/health", "/v2/health/live", "/v2/health/ready", "/shutdown"}
)
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_CORS_METHODS = b"GET, HEAD, POST, PUT, DELETE, OPTIONS"
_CORS_HEADERS = b"Authorization, Content-Type, X-Request-ID"
# What a preflight may ask for: names, but never "*". OpenAI's client sends a dozen headers of its own (x-stainless-…).
_HEADER_NAMES = re.compile(rb"[A-Za-z0-9_-]+(?:[ \t]*,[ \t]*[A-Za-z0-9_-]+)*")
_MAX_HEADER_NAMES = 2048
"""Bytes."""
_EXPOSED = b"X-Request-ID, X-Sample-Rate, X-Model, X-Voice, Retry-After"


def allowed_hosts(port: int) -> frozenset[bytes]:
    """Host header values of this computer's loopback; anything else is a DNS-rebinding page."""
    names = ("127.0.0.1", "localhost", "[::1]")
    bare = names if port == 80 else ()  # clients leave the default port out
    return frozenset(name.encode() for name in (*bare, *(f"{name}:{port}" for name in names)))


class _Headers:
    """The few headers the gate looks at, picked in one pass."""

    __slots__ = (
        "authorization",
        "doubled",
        "encoding",
        "expect",
        "host",
        "length",
        "origin",
        "protocols",
        "request_id",
    )

    def __init__(self, raw: Iterable[tuple[bytes, bytes]]) -> None:
        self.host: bytes | None = None
        self.origin: bytes | None = None
        self.authorization: bytes | None = None
        self.length: bytes | None = None
        self.request_id: bytes | None = None
        self.protocols: bytes | None = None
        self.expect: bytes | None = None
        self.encoding: bytes | None = None
        # Two of what decides about access: a proxy before us might have looked at the other one.
        self.doubled = False
        for name, value in raw:
            slot = _WATCHED.get(name)
            if slot is not None:
                if slot in _SINGLE and getattr(self, slot) is not None:
                    self.doubled = True
                setattr(self, slot, value)

    @property
    def packing(self) -> str:
        """The Content-Encoding, where it is one."""
        if self.encoding is None:
            return ""
        name = self.encoding.decode("latin-1").strip().lower()
        return "" if name == "identity" else name


_WATCHED = {
    b"host": "host",
    b"origin": "origin",
    b"authorization": "authorization",
    b"content-length": "length",
    b"x-request-id": "request_id",
    b"sec-websocket-protocol": "protocols",
    b"expect": "expect",
    b"content-encoding": "encoding",
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
        audio_paths: Iterable[str] = (),
        max_audio_bytes: int = 0,
        metrics: Metrics,
        access: AccessLog,
        limit: RateLimit | None = None,
    ) -> None:
        self._app = app
        self._token = token
        self._bearer = f"Bearer {token}".encode() if token else None
        self._protocol = SUBPROTOCOL + token.encode() if token else None
        self._hosts = allowed_hosts(port)
        self._origins = frozenset(origin.encode() for origin in origins) if token else frozenset()
        self._body_limit = BodyLimit(max_body_bytes, "SIDECAR_MAX_BODY_BYTES")
        audio_limit = BodyLimit(max_audio_bytes, "SIDECAR_MAX_AUDIO_BYTES")
        self._body_limits = {path: audio_limit for path in audio_paths}
        self._metrics = metrics
        self._access = access
        self._limit = limit

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
                await _preflight(scope)(scope, receive, tagged_send)
            else:
                await self._app(scope, self._guarded(scope, headers, receive), tagged_send)
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
        unproven = bool(self._bearer) and not self._authorised(headers) and not self._offers_token(offered)
        if error is None and unproven and (headers.authorization or _offers_any(offered)):
            error = UnauthorizedError("the WebSocket's token is wrong")
        if error is None and self._limit is not None:
            error = self._over_limit(self._limit, headers)
        if error is not None:
            await receive()
            code = 1013 if isinstance(error, RateLimitedError) else 1008  # RFC 6455: try again later, policy
            await send({"type": "websocket.close", "code": code, "reason": error.code})
            return
        if unproven:
            assert self._token is not None
            try:
                receive, send = await authenticate(receive, send, self._token)
            except UnauthorizedError:
                return
        self._metrics.websockets += 1
        try:
            await self._app(scope, receive, echoing(send, offered))
        finally:
            self._metrics.websockets -= 1

    def _guarded(self, scope: Scope, headers: _Headers, receive: Receive) -> Receive:
        """The body as the app reads it: unpacked, and within the limit also where its length is not known."""
        if headers.length is not None and not headers.packing:
            return receive
        return Counted(receive, self._size_limit(scope), headers.packing)

    def _refusal(self, scope: Scope, headers: _Headers) -> SidecarError | None:
        error = self._host_or_origin(headers)
        if error is not None:
            return error
        preflight = scope["method"] == "OPTIONS" and headers.origin is not None
        if self._bearer and not preflight and scope["path"] not in OPEN_PATHS and not self._authorised(headers):
            return UnauthorizedError(
                "token missing or wrong; send `Authorization: Bearer <token>` from the handshake file"
            )
        if headers.packing and headers.packing not in PACKINGS:
            return UnsupportedEncodingError(
                f"Content-Encoding {headers.packing[:40]!r} is not read here; send the body as it is, or as gzip"
            )
        size = self._size_limit(scope)
        if headers.length is not None and int(headers.length) > size.size_bytes:
            return BodyTooLargeError(
                f"the body has {int(headers.length)} bytes; the limit is {size.size_bytes} ({size.setting})"
            )
        if self._limit is not None and not preflight and scope["path"] not in _UNLIMITED_PATHS:
            return self._over_limit(self._limit, headers)
        return None

    def _size_limit(self, scope: Scope) -> "BodyLimit":
        return self._body_limits.get(scope["path"], self._body_limit)

    def _over_limit(self, limit: RateLimit, headers: _Headers) -> SidecarError | None:
        """Clients are told apart by what they cannot make up: their allowed origin. All programs together are one."""
        wait_s = limit.take(headers.origin or b"")
        if not wait_s:
            return None
        self._metrics.rate_limited += 1
        message = f"more requests than RATE_LIMIT_PER_MINUTE allows; the next one may come in {wait_s:.1f} s"
        return RateLimitedError(message, retry_after_s=wait_s)

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
                await discard(receive)
        await response(scope, receive, send)

    def _cors(self, origin: bytes | None) -> list[tuple[bytes, bytes]]:
        if origin is None or origin not in self._origins:
            return []
        return [
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", _EXPOSED),
            (b"vary", b"Origin"),
        ]


def _offers_any(offered: Iterable[bytes]) -> bool:
    return any(protocol.startswith(SUBPROTOCOL) for protocol in offered)


def _preflight(scope: Scope) -> Response:
    """Of an origin that is allowed: the gate has looked."""
    asked = next((value for name, value in scope["headers"] if name == b"access-control-request-headers"), b"")
    sound = len(asked) <= _MAX_HEADER_NAMES and _HEADER_NAMES.fullmatch(asked)
    headers = {
        "access-control-allow-methods": _CORS_METHODS.decode(),
        "access-control-allow-headers": (asked if sound else _CORS_HEADERS).decode(),
        "access-control-max-age": "600",
        # Chromium's private network access: the page asks before it talks to loopback.
        "access-control-allow-private-network": "true",
    }
    return Response(status_code=204, headers=headers)
