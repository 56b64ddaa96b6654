"""A request's body: counted, unpacked where its sender has packed it, and read as JSON."""

import asyncio
import contextlib
import re
import zlib
from typing import NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.types import Message, Receive

from sidecar.errors import BadRequestError, BodyTooLargeError

PACKINGS = frozenset({"gzip", "x-gzip", "deflate"})
# A body may grow a thousandfold: it is unpacked piece by piece, so that whoever counts can stop it.
_PIECE_BYTES = 1 << 20
# A client that is still sending cannot read our answer: what it sends is thrown away first, up to this much.
_DISCARD_BYTES = 256 * 1024 * 1024
_DISCARD_S = 10.0
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_ESCAPE = re.compile(rb"\\(?:u[dD][89abAB]\w\w\\u[dD][c-fC-F]\w\w|(?P<lone>u[dD][89a-fA-F]\w\w)|.)", re.DOTALL)

RequestT = TypeVar("RequestT", bound=BaseModel)


class BodyLimit(NamedTuple):
    """How large a body may be, and the setting that says so."""

    size_bytes: int
    setting: str


class Counted:
    """`receive` for a body of unannounced length, packed or not; raises BodyTooLargeError past the limit."""

    def __init__(self, receive: Receive, limit: BodyLimit, packing: str) -> None:
        self._receive = receive
        self._limit = limit
        self._unpacked = Unpacked(receive, packing) if packing else None
        self._seen_bytes = 0

    async def __call__(self) -> Message:
        message = await (self._unpacked or self._receive)()
        self._seen_bytes += len(message.get("body", b""))
        if self._seen_bytes > self._limit.size_bytes:
            if self._unpacked.more if self._unpacked else message.get("more_body"):
                await discard(self._receive)
            limit = f"the limit of {self._limit.size_bytes} bytes ({self._limit.setting})"
            raise BodyTooLargeError(f"the body is over {limit}")
        return message


async def discard(receive: Receive) -> None:
    """Read on for as long as it makes sense, so that the client gets to reading the answer."""

    async def read() -> None:
        seen_bytes = 0
        more = True
        while more and seen_bytes < _DISCARD_BYTES:
            message = await receive()
            seen_bytes += len(message.get("body", b""))
            more = message.get("more_body", False)

    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(read(), _DISCARD_S)


class Unpacked:
    """`receive` for a body with a Content-Encoding. Raises BadRequestError for what is none, or cut short."""

    def __init__(self, receive: Receive, packing: str) -> None:
        self._receive = receive
        self._packing = packing
        self._unpacker = zlib.decompressobj(47)  # the header of either
        self._packed = b""
        self._pending = True
        self.more = True
        """Whether more of it is on its way."""

    async def __call__(self) -> Message:
        if not self._pending:
            return await self._receive()
        if not self._packed and self.more:
            message = await self._receive()
            if message["type"] != "http.request":
                return message
            self._packed, self.more = message.get("body", b""), message.get("more_body", False)
        try:
            piece = self._unpacker.decompress(self._packed, _PIECE_BYTES)
        except zlib.error as error:
            raise BadRequestError(f"the body is no {self._packing}: {error}") from None
        self._packed = self._unpacker.unconsumed_tail
        # A full piece may leave something behind although all that came is consumed.
        self._pending = self.more or bool(self._packed) or len(piece) == _PIECE_BYTES
        if not self._pending and not self._unpacker.eof:
            raise BadRequestError(f"the body's {self._packing} is cut short")
        if self._unpacker.unused_data:
            raise BadRequestError(f"the body goes on after the end of its {self._packing}")
        return {"type": "http.request", "body": piece, "more_body": self._pending}


def read_json(kind: type[RequestT], body: bytes) -> RequestT:
    """The request that a body holds. Raises ValidationError.

    Two things are read that the strict parser refuses: a byte order mark (RFC 8259, 8.1, allows it), and half of a
    surrogate pair, which is what JavaScript makes of an emoji when it cuts a text: it becomes U+FFFD.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        if error.errors(include_url=False, include_context=False, include_input=False)[0]["type"] != "json_invalid":
            raise
        mended = _ESCAPE.sub(_whole, body.removeprefix(_BYTE_ORDER_MARK))
        if mended == body:
            raise
        return kind.model_validate_json(mended)


def _whole(escape: "re.Match[bytes]") -> bytes:
    return rb"\ufffd" if escape["lone"] else escape[0]
