"""Speech synthesis routes: audio in chunks while it is made, or with the times of its words and phonemes."""

import asyncio
import base64
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterator
from contextlib import aclosing
from typing import Any, BinaryIO, Literal, NamedTuple, cast

import msgspec
from fastapi import APIRouter, Request
from pydantic import ValidationError
from starlette.responses import Response

from sidecar.capabilities import BY_NAME
from sidecar.capabilities.tts import Order, Piece, SpeechRequest, SpeechResponse
from sidecar.catalogue.spec import ModelSpec
from sidecar.catalogue.voices import Voice, has_voice, voice_for, voices_of
from sidecar.errors import DiskFullError, InputError, NoTimingsError, SidecarError, VoiceNotFoundError
from sidecar.inference.fallback import by_best
from sidecar.inference.residency import parse_keep_alive
from sidecar.server.body import read_json
from sidecar.server.encoding import MEDIA_TYPES, encoded_rate, make_encoder, wav_header
from sidecar.server.problem import from_validation
from sidecar.server.routes import answer
from sidecar.server.state import ServerState, state_of
from sidecar.server.streaming import Streamed
from sidecar.sessions.speech import speak

router = APIRouter(tags=["tts"])

Timings = Literal["phonemes"]
_EXAMPLE = {"text": "Hello there.", "voice": "en-us", "speed": 1.0, "format": "wav"}
_FIRST_SLICE_S = 0.25
# Audio that is answered as a whole: what of it stays in memory, and blocks of whole base64 groups.
_HELD_BYTES = 4_000_000
_BLOCK_BYTES = 3 << 14
_NDJSON = "application/x-ndjson"


class Voiced(NamedTuple):
    """Speech whose first piece is made: from here on it will most likely work."""

    spec: ModelSpec
    voice: str | None
    first: Piece
    pieces: AsyncGenerator[Piece, None]

    async def all(self) -> AsyncGenerator[Piece, None]:
        async with aclosing(self.pieces):
            yield self.first
            async for piece in self.pieces:
                yield piece


@router.get("/tts/voices", summary="Voices of all models that can speak now")
async def voices(request: Request) -> dict[str, Any]:
    return {"voices": await described_voices(state_of(request).catalogue.for_capability("tts"))}


async def described_voices(specs: list[ModelSpec]) -> list[dict[str, Any]]:
    """The voices of these models, as the routes that list them tell them."""
    found = await asyncio.to_thread(lambda: [(spec, voice) for spec in specs for voice in voices_of(spec)])
    return [_described(spec, voice) for spec, voice in found]


def _described(spec: ModelSpec, voice: Voice) -> dict[str, Any]:
    known = voice._asdict()
    if voice.description is None:
        del known["description"]
    return {**known, "model": spec.id}


@router.post(
    "/tts/synthesize",
    summary="A text to audio, streamed as it is made",
    response_class=Response,
    responses={200: {"content": {"audio/wav": {}, "application/json": {}, _NDJSON: {}}}},
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": SpeechRequest.model_json_schema(), "example": _EXAMPLE}},
        }
    },
)
async def synthesize(request: Request, timings: Timings | None = None) -> Response:
    state = state_of(request)

    async def work(body: bytes) -> Response:
        started = time.perf_counter()
        try:
            asked = read_json(SpeechRequest, body)
        except ValidationError as error:
            return from_validation(error, body)
        voiced = await begin(state, asked, timings=timings is not None)
        if timings is None:
            return streamed(state, voiced, asked.format)
        if _NDJSON in request.headers.get("accept", ""):
            return Streamed(
                _lines(voiced), _NDJSON, _headers(voiced, voiced.first["sample_rate"]), state.settings.request_timeout_s
            )
        told = _as_json(*await _whole(voiced, asked, started))
        return Streamed(told, "application/json", {}, state.settings.request_timeout_s)

    response = await answer(request.receive, state.settings.request_timeout_s, work)
    return response or Response()  # nobody is there to read it


async def begin(state: ServerState, request: SpeechRequest, timings: bool = False) -> Voiced:
    """Choose model and voice and wait for the first audio, so that what goes wrong still becomes an error's answer."""
    named = request.model is not None or request.voice is not None
    untimed: list[ModelSpec] = []

    async def use(chosen: tuple[ModelSpec, str | None]) -> Voiced:
        try:
            return await _begin(state, request, *chosen, timings)
        except NoTimingsError:
            if not named:  # whoever named one is told, and not answered by another
                untimed.append(chosen[0])
            raise

    return await by_best(lambda: choose(state, request.model, request.voice, request.language, untimed), use)


async def _begin(
    state: ServerState, request: SpeechRequest, spec: ModelSpec, voice: str | None, timings: bool
) -> Voiced:
    order: Order = BY_NAME["tts"].prepare(request)
    order["voice"], order["timings"] = voice, timings
    keep_alive_s = None if request.keep_alive is None else parse_keep_alive(request.keep_alive, 0.0)
    pieces = speak(lambda portion: state.pool.stream(spec, "tts", portion, keep_alive_s), order)
    try:
        # Speech may begin with a piece of silence, made of what cannot be said.
        async for first in pieces:
            if first["audio"].shape[0]:
                return Voiced(spec, voice, first, pieces)
    except BaseException:
        await pieces.aclose()
        raise
    raise InputError("nothing in the text can be said by this voice")


def choose(
    state: ServerState,
    model: str | None,
    voice: str | None,
    language: str | None,
    last: Collection[ModelSpec] = (),
) -> tuple[ModelSpec, str | None]:
    """The model and voice that answer: of the pinned model, else of the best one that has what is asked for. Those of
    `last` come after all others.

    Raises ModelNotFoundError, ModelUnavailableError, VoiceNotFoundError.
    """
    best = state.pool.resolve("tts", model)
    candidates = [best] if model is not None else [best, *state.pool.usable("tts")]
    candidates.sort(key=lambda spec: spec in last)
    if voice is not None:
        for spec in candidates:
            if has_voice(spec, voice):
                return spec, voice
        some = ", ".join(each.id for each in voices_of(best)[:6])
        raise VoiceNotFoundError(f"no voice {voice[:64]!r} of {_names(candidates)}; some are {some} (GET /tts/voices)")
    if language is not None:
        for spec in candidates:
            if found := voice_for(spec, language):
                return spec, found
        raise VoiceNotFoundError(f"no voice for language {language[:64]!r} of {_names(candidates)} (GET /tts/voices)")
    own = voices_of(candidates[0])
    return candidates[0], own[0].id if own else None


def _names(specs: list[ModelSpec]) -> str:
    return ", ".join(dict.fromkeys(spec.id for spec in specs))


def streamed(state: ServerState, voiced: Voiced, format: str, wanted_rate: int | None = None) -> Response:
    """Audio in chunks; `wanted_rate` resamples."""
    headers = _headers(voiced, encoded_rate(format, voiced.first["sample_rate"], wanted_rate))
    chunks = encoded(voiced, format, wanted_rate)
    return Streamed(chunks, MEDIA_TYPES[format], headers, state.settings.request_timeout_s)


def _headers(voiced: Voiced, rate: int) -> dict[str, str]:
    headers = {"X-Sample-Rate": str(rate), "X-Model": voiced.spec.id}
    return headers | ({"X-Voice": voiced.voice} if voiced.voice and voiced.voice.isascii() else {})


async def encoded(voiced: Voiced, format: str, wanted_rate: int | None = None) -> AsyncGenerator[bytes, None]:
    """The file's bytes, every sentence's as soon as it is there. Encoding is done in a thread."""
    encoder = None
    async with aclosing(voiced.all()) as pieces:
        async for piece in pieces:
            if encoder is None:
                encoder = await asyncio.to_thread(make_encoder, format, piece["sample_rate"], wanted_rate)
            if not encoder.heavy:
                yield encoder.feed(piece["audio"].data, piece["last"])
                continue
            for samples in _slices(piece["audio"].data, piece["sample_rate"]):
                yield await asyncio.to_thread(encoder.feed, samples)
    if encoder is not None:
        yield await asyncio.to_thread(encoder.finish)


def _slices(samples: memoryview, sample_rate: int) -> Iterator[memoryview]:
    """A sentence in parts, the first of them small: it is heard while the rest is encoded."""
    start, size = 0, int(_FIRST_SLICE_S * sample_rate) * 2
    while start < len(samples):
        yield samples[start : start + size]
        start, size = start + size, sample_rate * 2


async def _lines(voiced: Voiced) -> AsyncGenerator[bytes, None]:
    """A JSON object a line: each piece with its PCM and the times of its words, counted from the beginning of all.

    What breaks off ends in a line with the `error`.
    """
    async with aclosing(voiced.all()) as pieces:
        try:
            async for piece, start_s in _clocked(pieces):
                line = {
                    "text": piece["text"],
                    "audio": base64.b64encode(piece["audio"].data).decode(),
                    "format": "pcm",
                    "sample_rate": piece["sample_rate"],
                    **_timed(piece, start_s),
                }
                yield msgspec.json.encode(line) + b"\n"
        except SidecarError as error:
            told = {"code": error.code, "message": error.message, "retryable": error.retryable}
            yield msgspec.json.encode({"type": "error", **told}) + b"\n"


async def _whole(voiced: Voiced, asked: SpeechRequest, started: float) -> tuple[BinaryIO, SpeechResponse]:
    """The audio's file, and the answer without it. What is long waits on disk: hours of speech fit into no memory."""
    phonemes: list[dict[str, Any]] = []
    words: list[dict[str, Any]] = []
    sample_rate, pcm_bytes = voiced.first["sample_rate"], 0
    held = cast(BinaryIO, tempfile.SpooledTemporaryFile(_HELD_BYTES))  # noqa: SIM115  (whoever sends it closes it)
    try:
        encoder = await asyncio.to_thread(make_encoder, "pcm" if asked.format == "wav" else asked.format, sample_rate)
        if asked.format == "wav":
            held.write(wav_header(sample_rate, 0))
        async with aclosing(voiced.all()) as pieces:
            async for piece, start_s in _clocked(pieces):
                await asyncio.to_thread(lambda samples: _keep(held, encoder.feed(samples)), piece["audio"].data)
                pcm_bytes += len(piece["audio"].data)
                times = _timed(piece, start_s)
                phonemes += times["phonemes"]
                words += times["words"]
        await asyncio.to_thread(lambda: _keep(held, encoder.finish()))
        held.seek(0)
        if asked.format == "wav":  # its length is known only now
            held.write(wav_header(sample_rate, pcm_bytes))
            held.seek(0)
    except BaseException:
        held.close()
        raise
    return held, SpeechResponse(
        audio="",
        format=asked.format,
        sample_rate=sample_rate,
        duration_s=round(pcm_bytes / 2 / sample_rate, 4),
        phonemes=phonemes,
        words=words,
        voice=voiced.voice,
        processing_time_ms=round((time.perf_counter() - started) * 1000, 3),
        model=voiced.spec.id,
    )


def _keep(held: BinaryIO, data: bytes) -> None:
    """Raises DiskFullError."""
    try:
        held.write(data)
    except OSError as error:
        said = f"the audio cannot be kept in {tempfile.gettempdir()} until it is whole: {error.strerror}"
        cure = f"free some space there, set TMPDIR, or take it line by line (Accept: {_NDJSON})"
        raise DiskFullError(f"{said}; {cure}") from None


async def _as_json(held: BinaryIO, response: SpeechResponse) -> AsyncGenerator[bytes, None]:
    """The answer with its audio, of which one block at a time is in memory."""
    with held:
        yield b'{"audio":"'
        while block := await asyncio.to_thread(held.read, _BLOCK_BYTES):
            yield base64.b64encode(block)
    rest = await asyncio.to_thread(lambda: msgspec.json.encode(response.model_dump(exclude={"audio"})))
    yield b'",' + rest[1:]


async def _clocked(pieces: AsyncIterator[Piece]) -> AsyncIterator[tuple[Piece, float]]:
    samples = 0
    async for piece in pieces:
        yield piece, samples / piece["sample_rate"]
        samples += int(piece["audio"].shape[0])


def _timed(piece: Piece, start_s: float) -> dict[str, list[dict[str, Any]]]:
    def milliseconds(span: tuple[str, float, float]) -> dict[str, float]:
        return {"start_ms": round((start_s + span[1]) * 1000, 1), "end_ms": round((start_s + span[2]) * 1000, 1)}

    return {
        "words": [{"word": span[0], **milliseconds(span)} for span in piece["words"]],
        "phonemes": [{"phoneme": span[0], "ipa": span[0], **milliseconds(span)} for span in piece["phonemes"]],
    }
