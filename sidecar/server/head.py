"""HEAD: what GET would answer, without its body (RFC 9110, 9.3.2)."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Heads:
    """ASGI: asks `app` for a GET, and ends that as soon as its head is known: a stream has no end to wait for."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        answered = asyncio.Event()

        async def head_only(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send(message)
                await send({"type": "http.response.body"})
                answered.set()

        # The server decides by its own scope whether a body may follow.
        asked = {**scope, "method": "GET"}
        answering = asyncio.ensure_future(self._app(asked, receive, head_only))
        waiting = asyncio.ensure_future(answered.wait())
        try:
            await asyncio.wait({answering, waiting}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
            answering.cancel()
            await asyncio.wait({answering})
            if "route" in asked:
                scope["route"] = asked["route"]
        if not answering.cancelled() and not answered.is_set():
            answering.result()
