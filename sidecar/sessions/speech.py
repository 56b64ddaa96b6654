"""Speaking through the pool: long texts in portions, so that a slow listener holds no place in the runner."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing

from sidecar.capabilities.sentences import split
from sidecar.capabilities.tts import Order, Piece
from sidecar.errors import OutOfMemoryError, RunnerCrashedError, RunnerTimeoutError

PORTION = 1000
"""Characters after which a portion ends with its sentence: about a minute of speech."""
_AHEAD = 2  # pieces that are left to be heard when the next portion is asked for

Stream = Callable[[Order], AsyncGenerator[Piece, None]]


async def speak(stream: Stream, order: Order) -> AsyncGenerator[Piece, None]:
    """The pieces of a text of any length as they are made; at most a portion of them waits for its listener.

    `stream` synthesises one portion (`Pool.stream`), whose errors it raises. A runner that dies between two sentences
    is not missed, once in a portion. Closing it ends the work.
    """
    made: asyncio.Queue[Piece | BaseException | None] = asyncio.Queue()
    wanted = asyncio.Event()

    async def produce() -> None:
        try:
            for portion in portions(order):
                while made.qsize() > _AHEAD:
                    wanted.clear()
                    await wanted.wait()
                async with aclosing(_resumed(stream, portion)) as pieces:
                    async for piece in pieces:
                        made.put_nowait(piece)
            made.put_nowait(None)
        except Exception as error:  # whatever it is, it is the listener's
            made.put_nowait(error)

    task = asyncio.get_running_loop().create_task(produce(), name="speak")
    try:
        while (piece := await made.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            if made.qsize() <= _AHEAD:
                wanted.set()
            yield piece
    finally:
        task.cancel()
        await asyncio.wait([task])


async def _resumed(stream: Stream, portion: Order) -> AsyncGenerator[Piece, None]:
    """The pieces of a portion, the rest of which is asked for anew if its runner dies when a sentence is complete."""
    spoken, ended = 0, False
    try:
        async with aclosing(stream(portion)) as pieces:
            async for piece in pieces:
                spoken, ended = spoken + _length(piece["text"]), piece["ends"]
                yield piece
        return
    except (RunnerCrashedError, RunnerTimeoutError, OutOfMemoryError):
        if not ended:
            raise
    if rest := _after(portion["text"], spoken):
        async with aclosing(stream(Order(**{**portion, "text": rest}))) as pieces:
            async for piece in pieces:
                yield piece


def _length(text: str) -> int:
    """Characters but for the space between them, which is not kept."""
    return sum(map(len, text.split()))


def _after(text: str, spoken: int) -> str:
    """What follows that many characters that are no space."""
    for place, character in enumerate(text):
        if not spoken:
            return text[place:].strip()
        spoken -= not character.isspace()
    return ""


def portions(order: Order, size: int = PORTION) -> Iterator[Order]:
    """The order's text in whole sentences, a portion at a time. All but the last say that more follows."""
    portion: list[str] = []
    for sentence in split(order["text"]):
        # One sentence late, as only the one after it shows that a portion is not the last.
        if sum(map(len, portion)) >= size:
            yield Order(**{**order, "text": _joined(portion), "more": True})
            portion = []
        portion.append(sentence)
    yield Order(**{**order, "text": _joined(portion)})


def _joined(sentences: list[str]) -> str:
    # A blank line is an end for every splitter, whatever the sentences end and begin with.
    return "\n\n".join(sentences)
