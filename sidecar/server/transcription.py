"""Speech to text: the whole transcript, or its segments as they are made."""

import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, cast

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from sidecar.capabilities.asr import Asr, Head, Segment, Transcription, TranscriptionRequest, joined, tell
from sidecar.capabilities.base import Meta
from sidecar.catalogue.spec import ModelSpec
from sidecar.errors import RunnerCrashedError, SidecarError
from sidecar.inference.fallback import by_best
from sidecar.inference.residency import parse_keep_alive
from sidecar.server.audio import AudioSource, read_audio
from sidecar.server.recordings import attend, documented
from sidecar.server.routes import Cut
from sidecar.server.state import ServerState
from sidecar.server.streaming import Streamed

router = APIRouter(tags=["asr"])

NDJSON, SSE = "application/x-ndjson", "text/event-stream"
_ASR = Asr()


@dataclass
class Heard:
    """A transcription that has begun: what is known of it, and its segments to come. Close it."""

    spec: ModelSpec
    head: Head
    segments: AsyncGenerator[Segment, None]
    started: float
    anew: Callable[[], Awaitable["Heard"]]
    """The same from its beginning."""

    async def rest(self, cut: Cut, timeout_s: float) -> list[Segment]:
        """All segments. If a runner dies over them, another one is asked: nobody has been told any yet."""
        try:
            return await self._rest(cut, timeout_s)
        except RunnerCrashedError:
            cut.after(timeout_s, "time")
        again = await self.anew()
        self.spec, self.head = again.spec, again.head
        return await again._rest(cut, timeout_s)

    async def _rest(self, cut: Cut, timeout_s: float) -> list[Segment]:
        """A long recording takes its time: each segment puts the timeout off."""
        found = []
        async with aclosing(self.segments):
            async for segment in self.segments:
                cut.after(timeout_s, "time")
                found.append(segment)
        return found

    def finish(self, segments: list[Segment]) -> Transcription:
        """The answer."""
        took_ms = round((time.perf_counter() - self.started) * 1000, 3)
        return _ASR.finish([self.head, *segments], Meta(self.spec.id, took_ms))


async def begin(state: ServerState, asked: TranscriptionRequest, source: AudioSource) -> Heard:
    """Decode, find a model, and wait until it has begun. Raises SidecarError."""
    started = time.perf_counter()
    choose(state, asked)  # before the work of decoding
    asked.hear((await read_audio(source, state.settings, state.decoder)).samples)
    return await _open(state, asked, started)


async def _open(state: ServerState, asked: TranscriptionRequest, started: float) -> Heard:
    keep_alive_s = None if asked.keep_alive is None else parse_keep_alive(asked.keep_alive, 0.0)

    async def hear(spec: ModelSpec) -> Heard:
        pieces = state.pool.stream(spec, _ASR.name, _ASR.prepare(asked), keep_alive_s)
        try:
            head: Head = await anext(pieces)
        except BaseException:
            await pieces.aclose()
            raise
        segments = cast("AsyncGenerator[Segment, None]", pieces)
        return Heard(spec, head, segments, started, lambda: _open(state, asked, started))

    return await by_best(lambda: choose(state, asked), hear)


def choose(state: ServerState, asked: TranscriptionRequest) -> ModelSpec:
    """The model that is named; else the active one, unless only another one knows the language."""
    spec = state.pool.resolve(_ASR.name, asked.model)
    if asked.model is not None or _knows(spec, asked):
        return spec
    usable = state.pool.usable(_ASR.name)
    return next((other for other in usable if _knows(other, asked)), spec)


def _knows(spec: ModelSpec, asked: TranscriptionRequest) -> bool:
    if not spec.languages:
        return True
    if asked.language is None:
        return asked.task == "transcribe"
    return asked.language in {tag.split("-")[0] for tag in spec.languages}


@router.post(
    "/asr/transcribe",
    summary="What is said in a recording",
    response_model=Transcription,
    responses={200: {"content": {NDJSON: {}, SSE: {}}}},
    openapi_extra=documented(TranscriptionRequest, audio_path="/tmp/hello.wav", word_timestamps=True),
)
async def transcribe(request: Request) -> Response:
    accept = request.headers.get("accept", "")
    kind = next((kind for kind in (NDJSON, SSE) if kind in accept), None)

    async def work(cut: Cut, state: ServerState, source: AudioSource, options: dict[str, Any]) -> Response:
        heard = await begin(state, TranscriptionRequest.model_validate(options), source)
        timeout_s = state.settings.request_timeout_s
        if kind is not None:
            return Streamed(_lines(heard, kind), kind, {"Cache-Control": "no-cache"}, timeout_s)
        answer = heard.finish(await heard.rest(cut, timeout_s))
        return Response(answer.model_dump_json(exclude_none=True), media_type="application/json")

    return await attend(request, work)


async def _lines(heard: Heard, kind: str) -> AsyncGenerator[bytes, None]:
    """`head`, a `segment` each, and `final`; or `error`, which can come at any time."""
    said: list[Segment] = []
    async with aclosing(heard.segments):
        try:
            yield _line(kind, "head", {**heard.head, "model": heard.spec.id})
            async for segment in heard.segments:
                said.append(segment)
                yield _line(kind, "segment", tell(segment).model_dump(exclude_none=True))
            final = heard.finish(said).model_dump(exclude={"segments"})
            yield _line(kind, "final", {**final, "text": joined(said)})
        except SidecarError as error:
            told = {"code": error.code, "message": error.message, "retryable": error.retryable}
            yield _line(kind, "error", told)


def _line(kind: str, event: str, fields: Any) -> bytes:
    body = msgspec.json.encode({"type": event, **fields})
    return body + b"\n" if kind == NDJSON else b"event: " + event.encode() + b"\ndata: " + body + b"\n\n"
