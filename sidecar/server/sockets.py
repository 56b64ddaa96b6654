"""WebSockets at the gate: the token as subprotocol or first message, which is all that a browser can send."""

import asyncio
import hmac
from collections.abc import Sequence

import msgspec
from starlette.types import Message, Receive, Send

from sidecar.errors import UnauthorizedError

SUBPROTOCOL = b"bearer."
_FIRST_MESSAGE_S = 10.0
_FIRST_MESSAGE_BYTES = 4096


def echoing(send: Send, offered: Sequence[bytes]) -> Send:
    """`send` that accepts with the client's `bearer.` subprotocol: a browser closes a socket that takes none of its."""
    protocol = next((each.decode("latin-1") for each in offered if each.startswith(SUBPROTOCOL)), None)

    async def echo(message: Message) -> None:
        if message["type"] == "websocket.accept" and protocol and not message.get("subprotocol"):
            message = {**message, "subprotocol": protocol}
        await send(message)

    return echo


async def authenticate(receive: Receive, send: Send, token: str) -> tuple[Receive, Send]:
    """Accept, and wait for `{"type": "auth", "token": …}`. Gives what the application is to use instead.

    Raises UnauthorizedError after the client has been told and the socket closed.
    """
    await receive()  # websocket.connect
    await send({"type": "websocket.accept"})
    if not await _has_token(receive, token):
        error = UnauthorizedError('the WebSocket\'s first message is not {"type": "auth", "token": …} with our token')
        told = {"type": "error", "code": error.code, "message": error.message}
        await send({"type": "websocket.send", "text": msgspec.json.encode(told).decode()})
        await send({"type": "websocket.close", "code": 1008, "reason": error.code})
        raise error
    connected = False

    async def receive_rest() -> Message:
        nonlocal connected
        if not connected:
            connected = True
            return {"type": "websocket.connect"}
        return await receive()

    async def send_rest(message: Message) -> None:
        if message["type"] != "websocket.accept":  # it has been
            await send(message)

    return receive_rest, send_rest


async def _has_token(receive: Receive, token: str) -> bool:
    try:
        message = await asyncio.wait_for(receive(), _FIRST_MESSAGE_S)
        text = message.get("text") or ""
        if len(text) > _FIRST_MESSAGE_BYTES:
            return False
        said = msgspec.json.decode(text)
        return said.get("type") == "auth" and hmac.compare_digest(str(said["token"]).encode(), token.encode())
    except (asyncio.TimeoutError, msgspec.DecodeError, AttributeError, KeyError, RecursionError):
        return False
