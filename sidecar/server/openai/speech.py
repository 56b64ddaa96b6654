"""`POST /v1/audio/speech`: OpenAI's speech synthesis, for its own clients unchanged.

Source: OpenAI's API reference (audio/createSpeech) and the types of its Python client.
"""

import base64
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Literal

import msgspec
from fastapi import APIRouter, Request
from pydantic import BaseModel, Field, ValidationError
from starlette.responses import Response

from sidecar.capabilities.base import KeepAlive
from sidecar.capabilities.tts import MAX_CHARACTERS, MAX_DESCRIPTION, SPEEDS, Format, SpeechRequest
from sidecar.catalogue.spec import ModelSpec
from sidecar.catalogue.voices import has_voice, voices_of
from sidecar.errors import SidecarError
from sidecar.inference.fallback import by_best
from sidecar.server.body import read_json
from sidecar.server.encoding import OPENAI_PCM_RATE
from sidecar.server.openai.naming import model_named
from sidecar.server.problem import from_validation
from sidecar.server.routes import answer
from sidecar.server.state import ServerState, state_of
from sidecar.server.streaming import Streamed
from sidecar.server.synthesis import Voiced, begin, choose, described_voices, encoded, streamed

router = APIRouter(tags=["openai"])

# OpenAI's voices, and which of ours comes near: by name where a model has it, else by gender.
_VOICES = {
    "alloy": ("female", "af_alloy"),
    "ash": ("male", "am_michael"),
    "ballad": ("male", "bm_george"),
    "cedar": ("male", "am_fenrir"),
    "coral": ("female", "af_bella"),
    "echo": ("male", "am_echo"),
    "fable": ("male", "bm_fable"),
    "marin": ("female", "af_heart"),
    "nova": ("female", "af_nova"),
    "onyx": ("male", "am_onyx"),
    "sage": ("female", "af_sarah"),
    "shimmer": ("female", "af_sky"),
    "verse": ("male", "am_puck"),
}
_EXAMPLE = {"model": "tts-1", "input": "Hello there.", "voice": "alloy", "response_format": "mp3"}


class VoiceId(BaseModel):
    """A voice by its id, as OpenAI writes one of the user's own."""

    id: str


class OpenAISpeechRequest(BaseModel):
    """OpenAI's body."""

    input: str = Field(min_length=1, max_length=MAX_CHARACTERS)
    model: str = "tts-1"
    voice: str | VoiceId | None = None
    instructions: str | None = Field(None, max_length=MAX_DESCRIPTION)
    response_format: Format = "mp3"
    speed: float = Field(1.0, ge=SPEEDS[0], le=SPEEDS[1])
    stream_format: Literal["audio", "sse"] = "audio"
    keep_alive: KeepAlive = None


@router.post(
    "/v1/audio/speech",
    summary="Speech synthesis, as OpenAI's",
    response_class=Response,
    responses={200: {"content": {"audio/mpeg": {}, "text/event-stream": {}}}},
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": OpenAISpeechRequest.model_json_schema(), "example": _EXAMPLE}},
        }
    },
)
async def speech(request: Request) -> Response:
    state = state_of(request)

    async def work(body: bytes) -> Response:
        try:
            asked = read_json(OpenAISpeechRequest, body)
            voiced = await by_best(lambda: _translated(state, asked), lambda ours: begin(state, ours))
        except ValidationError as error:
            return from_validation(error, body)
        rate = OPENAI_PCM_RATE if asked.response_format == "pcm" else None
        if asked.stream_format == "audio":
            return streamed(state, voiced, asked.response_format, rate)
        chunks = _events(voiced, asked, rate)
        headers = {"Cache-Control": "no-cache"}
        return Streamed(chunks, "text/event-stream", headers, state.settings.request_timeout_s)

    response = await answer(request.receive, state.settings.request_timeout_s, work)
    return response or Response()  # nobody is there to read it


@router.get("/v1/audio/voices", summary="Voices, as clients of other local servers ask for them")
async def voices(request: Request, model: str | None = None) -> dict[str, Any]:
    """OpenAI has no such route; Kokoro-FastAPI has, and what lists voices to choose from (Open WebUI) reads it."""
    state = state_of(request)
    specs = state.catalogue.for_capability("tts")
    if model is not None:
        specs = [state.pool.resolve("tts", model_named(state, "tts", model))]
    return {"voices": await described_voices(specs)}


def _translated(state: ServerState, asked: OpenAISpeechRequest) -> SpeechRequest:
    """OpenAI's request as ours. Raises ModelNotFoundError, VoiceNotFoundError."""
    model = model_named(state, "tts", asked.model)
    voice = asked.voice.id if isinstance(asked.voice, VoiceId) else asked.voice
    if voice in _VOICES:
        spec, _ = choose(state, model, None, None)
        model, voice = spec.id, nearest(spec, voice)
    return SpeechRequest(
        text=asked.input,
        model=model,
        voice=voice,
        speed=asked.speed,
        format=asked.response_format,
        description=asked.instructions,
        language=None,
        emotion=None,
        keep_alive=asked.keep_alive,
    )


def nearest(spec: ModelSpec, name: str) -> str | None:
    """The voice of a model that stands for one of OpenAI's; different ones for different names, as far as there are."""
    gender, exact = _VOICES[name]
    if has_voice(spec, exact):
        return exact
    found = voices_of(spec)
    if not found:
        return None
    own = found[0].language
    near = [voice for voice in found if voice.language.split("-")[0] == own.split("-")[0]]
    # Of the model's own country first; none of OpenAI's whispers.
    alike = [voice for voice in near if voice.gender == gender and "whisper" not in voice.id]
    alike.sort(key=lambda voice: voice.language != own)
    place = [each for each, (of, _) in _VOICES.items() if of == gender].index(name)
    choice = alike or found
    return choice[place % len(choice)].id


async def _events(voiced: Voiced, asked: OpenAISpeechRequest, rate: int | None) -> AsyncGenerator[bytes, None]:
    """Server-sent events: the file's bytes in base64, and the usage at the end."""
    sent_bytes = 0
    try:
        async with aclosing(encoded(voiced, asked.response_format, rate)) as chunks:
            async for chunk in chunks:
                sent_bytes += len(chunk)
                if chunk:
                    yield _event({"type": "speech.audio.delta", "audio": base64.b64encode(chunk).decode()})
    except SidecarError as error:
        yield _event({"type": "error", "error": {"message": error.message, "code": error.code, "type": "server_error"}})
        return
    # There are no tokens here; characters and bytes are what was read and made.
    usage = {"input_tokens": len(asked.input), "output_tokens": sent_bytes}
    usage["total_tokens"] = sum(usage.values())
    yield _event({"type": "speech.audio.done", "usage": usage})


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(data) + b"\n\n"
