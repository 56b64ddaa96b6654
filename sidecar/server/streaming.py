"""A response that is sent while it is made, and ends what makes it when its reader goes."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sidecar.errors import SidecarError
from sidecar.server.routes import Cut

log = logging.getLogger("sidecar.server")

_BLOCK_BYTES = 1 << 16


class Streamed(Response):
    """Sends `chunks`, and closes them however it ends. A reader that takes nothing for `patience_s` is cut off.

    An error after the first byte cannot be told any more: the connection is cut, so that nobody takes what has come for
    the whole.
    """

    def __init__(
        self, chunks: AsyncGenerator[bytes, None], media_type: str, headers: dict[str, str], patience_s: float
    ) -> None:
        super().__init__(None, 200, headers, media_type)
        del self.headers["content-length"]
        self._chunks = chunks
        self._patience_s = patience_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with Cut() as cut:
            try:
                cut.watch(receive)
                async with aclosing(self._chunks):
                    await self._send(send, cut)
            except asyncio.CancelledError:
                if not cut.reason:
                    raise
            except SidecarError as error:
                log.warning("%s %s broke off: %s", scope["method"], scope["path"], error.message)

    async def _send(self, send: Send, cut: Cut) -> None:
        cut.after(self._patience_s, "time")
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for chunk in self._chunks:
            view = memoryview(chunk)
            # Block by block: the server then waits for its reader instead of taking all into memory.
            for start in range(0, len(view), _BLOCK_BYTES):
                cut.after(self._patience_s, "time")
                block = bytes(view[start : start + _BLOCK_BYTES])
                await send({"type": "http.response.body", "body": block, "more_body": True})
            cut.after(self._patience_s, "time")
        await send({"type": "http.response.body", "body": b"", "more_body": False})
