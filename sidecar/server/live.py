"""`WS /ws/asr`: live transcription. PCM16 in, partial and final texts out.

In, binary: PCM16, mono, little-endian. In, text: `config` (fields of `LiveConfig`, before the sound), `flush` (end the
utterance here), `end` (the same, and close when everything is told). Out: `ready`, `config`, `partial` (`stable` is the
part of `text` that stays), `final`, `done`, `error`.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

import msgspec
from fastapi import APIRouter
from pydantic import Field, ValidationError
from starlette.websockets import WebSocket, WebSocketDisconnect

from sidecar import wire
from sidecar.capabilities.asr import Asr, Segment, TranscriptionRequest, split_pieces
from sidecar.capabilities.recording import SAMPLE_RATE
from sidecar.capabilities.samples import MAX_RATE, MIN_RATE
from sidecar.capabilities.vad import FRAME_SAMPLES, Vad, VadItem
from sidecar.errors import InputError, ModelNotFoundError, ModelUnavailableError, SidecarError
from sidecar.inference.residency import parse_keep_alive
from sidecar.server.fields import first_fault
from sidecar.server.state import ServerState, state_of
from sidecar.server.transcription import choose
from sidecar.sessions.endpointing import Endpointer
from sidecar.sessions.transcript import LiveTranscript

log = logging.getLogger("sidecar.server")
router = APIRouter()

_ASR, _VAD = Asr(), Vad()
# RFC 6455 and its registry: policy, internal error, try again later.
_POLICY, _INTERNAL, _LATER = 1008, 1011, 1013
_LONGEST_S = 25.0  # Whisper hears 30 s at a time
_PATIENCE_S = 6.0
_PIECE_BYTES = 1 << 16  # of a long message, so that others have their turn between two

T = TypeVar("T")


class LiveConfig(TranscriptionRequest):
    """How to listen."""

    sample_rate: int = Field(SAMPLE_RATE, ge=MIN_RATE, le=MAX_RATE, description="of the sound that is sent (Hz)")
    threshold: float = Field(0.5, gt=0, lt=1, description="probability of speech above which an utterance begins")
    min_speech_ms: float = Field(96.0, ge=0, le=5000)
    min_silence_ms: float = Field(600.0, ge=100, le=10_000, description="a pause this long ends an utterance")
    interval_ms: float = Field(500.0, ge=100, le=10_000, description="new sound after which a partial text is made")


@router.websocket("/ws/asr")
async def listen(socket: WebSocket) -> None:
    await socket.accept()
    session = _Session(socket, state_of(socket))
    try:
        await session.run()
    except WebSocketDisconnect:
        return
    except SidecarError as error:
        await _leave(socket, error.code, error.message, _close_code(error))
    except Exception as error:  # a bug of ours must be an answer, too
        log.error("unhandled error in %s", socket.url.path, exc_info=error)
        await _leave(socket, "internal_error", "internal error; the log has the traceback", _INTERNAL)


def _close_code(error: SidecarError) -> int:
    if isinstance(error, InputError | ModelNotFoundError):
        return _POLICY
    return _LATER if _passes(error) else _INTERNAL


def _passes(error: SidecarError) -> bool:
    """Whether it may be otherwise a moment later."""
    return error.retryable or isinstance(error, ModelUnavailableError)


async def _leave(socket: WebSocket, code: str, message: str, close: int) -> None:
    try:
        await socket.send_text(_text({"type": "error", "code": code, "message": message}))
        await socket.close(close, code)
    except (WebSocketDisconnect, RuntimeError):  # it has gone meanwhile
        return


def _text(message: dict[str, Any]) -> str:
    return msgspec.json.encode(message).decode()


class _Session:
    """One socket: its configuration, its transcript, and the models it listens with (`Ears`)."""

    def __init__(self, socket: WebSocket, state: ServerState) -> None:
        self._socket = socket
        self._state = state
        self._config = LiveConfig()
        self._transcript: LiveTranscript | None = None
        self._resampler: Any = None
        self._odd = b""
        self._begun = asyncio.Event()

    async def run(self) -> None:
        """Until the client ends or goes. What is being computed for it then ends, too."""
        spec = choose(self._state, self._config)
        await self._tell({"type": "ready", "sample_rate": SAMPLE_RATE, "encoding": "pcm_s16le", "model": spec.id})
        tasks = [asyncio.ensure_future(each) for each in (self._receive(), self._work(), self._warm())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        duration_s = self._transcript.duration_s if self._transcript else 0.0
        await self._tell({"type": "done", "duration_s": round(duration_s, 3)})
        await self._socket.close()

    async def _warm(self) -> None:
        """Load the models while the client is still silent; whoever needs them is told what went wrong."""
        specs = (self._state.pool.resolve(_VAD.name), choose(self._state, self._config))
        await asyncio.gather(*(self._state.pool.slot(spec).ensure_ready() for spec in specs), return_exceptions=True)

    async def _work(self) -> None:
        await self._begun.wait()
        if self._transcript is not None:
            await self._transcript.work()

    async def _receive(self) -> None:
        while True:
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message.get("code", 1005))
            sound = message.get("bytes")
            if sound:
                await self._hear(sound)
            elif sound is not None:
                continue  # a recorder that had nothing yet
            elif not await self._obey(message.get("text") or ""):
                return

    async def _obey(self, text: str) -> bool:
        """Whether the session goes on. Raises InputError."""
        try:
            order = msgspec.json.decode(text)
            kind = order["type"]
        except (msgspec.DecodeError, KeyError, TypeError, RecursionError):
            raise InputError('a text message is a JSON object with "type": config, flush or end') from None
        match kind:
            case "config":
                await self._configure(order)
            case "flush" if self._transcript:
                await self._transcript.flush()
            case "flush":
                pass
            case "end":
                if self._transcript:
                    await self._transcript.feed(self._resampled(b"", last=True))
                    await self._transcript.finish()
                self._begun.set()
                return False
            case _:
                raise InputError(f"type {str(kind)[:40]!r}: there are config, flush and end")
        return True

    async def _configure(self, order: dict[str, Any]) -> None:
        if self._transcript is not None:
            raise InputError("config comes before the sound")
        try:
            self._config = LiveConfig.model_validate(order)
        except ValidationError as error:
            found = error.errors(include_url=False, include_context=False, include_input=False)
            fault = first_fault(found, order)
            raise InputError(f"config: {fault.field}: {fault.said}") from None
        parse_keep_alive(self._config.keep_alive, 0.0)
        spec = choose(self._state, self._config)
        await self._tell({"type": "config", **self._config.model_dump(exclude={"model"}), "model": spec.id})

    async def _hear(self, sound: bytes) -> None:
        if self._transcript is None:
            self._transcript = self._make()
            self._begun.set()
        sound = self._odd + sound
        self._odd = sound[len(sound) // 2 * 2 :]
        for start in range(0, len(sound) // 2 * 2, _PIECE_BYTES):
            await self._transcript.feed(self._resampled(sound[start : min(start + _PIECE_BYTES, len(sound) // 2 * 2)]))

    def _resampled(self, sound: bytes, last: bool = False) -> bytes:
        if self._resampler is None:
            return sound
        import numpy as np

        made: bytes = self._resampler.resample_chunk(np.frombuffer(sound, "<i2"), last=last).astype("<i2").tobytes()
        return made

    def _make(self) -> LiveTranscript:
        config = self._config
        if config.sample_rate != SAMPLE_RATE:
            import soxr

            self._resampler = soxr.ResampleStream(config.sample_rate, SAMPLE_RATE, 1, dtype="int16", quality="HQ")
        endpointer = Endpointer(
            config.threshold, config.min_speech_ms / 1000, config.min_silence_ms / 1000, longest_s=_LONGEST_S
        )
        return LiveTranscript(self, endpointer, self._tell, config.interval_ms / 1000)

    async def _tell(self, message: dict[str, Any]) -> None:
        await self._socket.send_text(_text(message))

    # Ears

    async def speech(self, pcm: bytes, state: Any) -> tuple[Sequence[float], Any]:
        item: VadItem = {"samples": _array(pcm), "knobs": None, "state": state}
        pool, cost = self._state.pool, 1 + len(pcm) // (2 * FRAME_SAMPLES)
        step = await _patiently(lambda: pool.infer(pool.resolve(_VAD.name), _VAD.name, item, cost))
        return step["probabilities"], step["state"]

    def spare(self) -> bool:
        try:
            return self._state.pool.slot(choose(self._state, self._config)).spare
        except SidecarError:
            return True  # whoever recognises is told

    async def recognise(self, pcm: bytes) -> tuple[list[Segment], dict[str, Any]]:
        return await _patiently(lambda: self._recognise(pcm))

    async def _recognise(self, pcm: bytes) -> tuple[list[Segment], dict[str, Any]]:
        # Chosen for every utterance: a better model that has come takes over between two of them.
        spec = choose(self._state, self._config)
        keep_alive = self._config.keep_alive
        keep_alive_s = None if keep_alive is None else parse_keep_alive(keep_alive, 0.0)
        item = _ASR.prepare(self._config)
        item["samples"] = _array(pcm)
        item["options"] |= {"word_timestamps": True, "vad_filter": False}  # what is no speech has been left out
        async with aclosing(self._state.pool.stream(spec, _ASR.name, item, keep_alive_s)) as pieces:
            head, segments = split_pieces([piece async for piece in pieces])
        return segments, {"language": head["language"], "model": spec.id}


async def _patiently(call: Callable[[], Awaitable[T]]) -> T:
    """Once more if a runner dies or cannot be had just now: the sound is still here, and whoever speaks cannot know."""
    try:
        return await call()
    except SidecarError as error:
        pause_s = error.retry_after_s or 0.0
        if not _passes(error) or pause_s > _PATIENCE_S:
            raise
    await asyncio.sleep(pause_s)
    return await call()


def _array(pcm: bytes) -> wire.Array:
    return wire.Array("int16", (len(pcm) // 2,), pcm)
