"""`POST /v1/audio/transcriptions` and `/v1/audio/translations`: OpenAI's, for its own clients unchanged.

Source: OpenAI's API reference (audio/createTranscription, audio/createTranslation) and its Python client's types.
"""

import math
import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, Literal

import msgspec
from fastapi import APIRouter, Request
from pydantic import BaseModel, Field, field_validator, model_validator
from starlette.responses import Response

from sidecar.capabilities.asr import MAX_PROMPT, Segment, TranscriptionRequest, joined
from sidecar.capabilities.base import KeepAlive
from sidecar.capabilities.languages import LANGUAGES
from sidecar.capabilities.recording import without_blanks
from sidecar.errors import SidecarError
from sidecar.server.audio import AudioSource
from sidecar.server.openai.errors import error_body
from sidecar.server.openai.naming import model_named
from sidecar.server.recordings import attend
from sidecar.server.routes import Cut
from sidecar.server.state import ServerState
from sidecar.server.streaming import Streamed
from sidecar.server.subtitles import to_srt, to_vtt
from sidecar.server.transcription import SSE, Heard, begin

router = APIRouter(tags=["openai"])

_Format = Literal["json", "text", "srt", "verbose_json", "vtt"]


class OpenAITranslationRequest(BaseModel):
    """OpenAI's fields besides `file`, and those of ours that clients send as `extra_body`."""

    model: str = "whisper-1"
    prompt: str | None = None
    response_format: _Format = "json"
    temperature: float = Field(0.0, ge=0, le=1)
    vad_filter: bool = Field(True, description="leave out what is no speech")
    hotwords: str | None = Field(None, max_length=MAX_PROMPT, description="words that are likely to be said")
    keep_alive: KeepAlive = None

    @model_validator(mode="before")
    @classmethod
    def _blank_is_absent(cls, fields: Any) -> Any:
        return without_blanks(fields)

    def ours(self, state: ServerState, task: Literal["transcribe", "translate"], **more: Any) -> TranscriptionRequest:
        """The same as a request of ours."""
        return TranscriptionRequest(
            model=model_named(state, "asr", self.model),
            task=task,
            # OpenAI takes prompts of any length, and reads the last 224 tokens.
            initial_prompt=self.prompt and self.prompt[-MAX_PROMPT:],
            temperature=self.temperature or None,
            vad_filter=self.vad_filter,
            hotwords=self.hotwords,
            keep_alive=self.keep_alive,
            **more,
        )


class OpenAITranscriptionRequest(OpenAITranslationRequest):
    """OpenAI's fields besides `file`, and ours."""

    language: str | None = None
    timestamp_granularities: tuple[Literal["word", "segment"], ...] = Field(
        ("segment",), alias="timestamp_granularities[]"
    )
    stream: bool = False

    @field_validator("timestamp_granularities", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        """Not every program can repeat a field of a form: "word,segment" and '["word"]' will do."""
        return re.findall(r"[^\s,\[\]\"']+", value) if isinstance(value, str) else value


def _documented(kind: type[BaseModel]) -> dict[str, Any]:
    schema = kind.model_json_schema()
    fields = {"file": {"type": "string", "format": "binary"}, **schema["properties"]}
    form = {**schema, "properties": fields, "required": ["file", "model"]}
    example = {"file": "(the bytes of hello.wav)", "model": "whisper-1", "response_format": "verbose_json"}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form, "example": example}}}}


@router.post(
    "/v1/audio/transcriptions",
    summary="Speech to text, as OpenAI's",
    response_class=Response,
    responses={200: {"content": {"application/json": {}, "text/plain": {}, SSE: {}}}},
    openapi_extra=_documented(OpenAITranscriptionRequest),
)
async def transcriptions(request: Request) -> Response:
    async def work(cut: Cut, state: ServerState, source: AudioSource, options: dict[str, Any]) -> Response:
        if "timestamp_granularities" in options:  # JSON clients have no brackets in names
            options["timestamp_granularities[]"] = options.pop("timestamp_granularities")
        asked = OpenAITranscriptionRequest.model_validate(options)
        words = "word" in asked.timestamp_granularities and asked.response_format == "verbose_json"
        ours = asked.ours(state, "transcribe", language=asked.language, word_timestamps=words)
        heard = await begin(state, ours, source)
        timeout_s = state.settings.request_timeout_s
        if asked.stream:
            return Streamed(_events(heard), SSE, {"Cache-Control": "no-cache"}, timeout_s)
        segments = await heard.rest(cut, timeout_s)
        return _formatted(heard, segments, asked.response_format, "transcribe", asked.timestamp_granularities)

    return await attend(request, work)


@router.post(
    "/v1/audio/translations",
    summary="Speech to English text, as OpenAI's",
    response_class=Response,
    responses={200: {"content": {"application/json": {}, "text/plain": {}}}},
    openapi_extra=_documented(OpenAITranslationRequest),
)
async def translations(request: Request) -> Response:
    async def work(cut: Cut, state: ServerState, source: AudioSource, options: dict[str, Any]) -> Response:
        asked = OpenAITranslationRequest.model_validate(options)
        heard = await begin(state, asked.ours(state, "translate"), source)
        segments = await heard.rest(cut, state.settings.request_timeout_s)
        return _formatted(heard, segments, asked.response_format, "translate", ["segment"])

    return await attend(request, work)


def _formatted(
    heard: Heard, segments: list[Segment], form: _Format, task: str, granularities: Sequence[str]
) -> Response:
    match form:
        case "text":
            return Response(joined(segments) + "\n", media_type="text/plain")
        case "srt":
            return Response(to_srt(segments), media_type="text/plain")
        case "vtt":
            return Response(to_vtt(segments), media_type="text/plain")
        case "verbose_json":
            return _json(_verbose(heard, segments, task, granularities))
        case "json":
            return _json({"text": joined(segments), "usage": _usage(heard)})


def _json(body: dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")


def _usage(heard: Heard) -> dict[str, Any]:
    return {"type": "duration", "seconds": math.ceil(heard.head["duration_s"])}


def _verbose(heard: Heard, segments: list[Segment], task: str, granularities: Sequence[str]) -> dict[str, Any]:
    language = "en" if task == "translate" else heard.head["language"]
    body: dict[str, Any] = {
        "task": task,
        "language": LANGUAGES.get(language, language),
        "duration": heard.head["duration_s"],
        "text": joined(segments),
        "usage": _usage(heard),
    }
    if "segment" in granularities:
        body["segments"] = [{key: value for key, value in segment.items() if key != "words"} for segment in segments]
    if "word" in granularities:
        body["words"] = [
            {"word": word["word"].strip(), "start": word["start"], "end": word["end"]}
            for segment in segments
            for word in segment.get("words", ())
        ]
    return body


async def _events(heard: Heard) -> AsyncGenerator[bytes, None]:
    """Deltas, which put together are the text, and the text."""
    said = ""
    async with aclosing(heard.segments):
        try:
            async for segment in heard.segments:
                delta = segment["text"] if said else segment["text"].lstrip()
                said += delta
                yield _event({"type": "transcript.text.delta", "delta": delta})
            yield _event({"type": "transcript.text.done", "text": said, "usage": _usage(heard)})
        except SidecarError as error:
            yield b"event: error\ndata: " + error_body(500, error.code, error.message, None) + b"\n\n"


def _event(body: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(body) + b"\n\n"
