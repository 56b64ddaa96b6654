"""Routes of the capabilities that listen: a recording comes as upload, base64 or path, and an answer goes as JSON."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from pydantic import BaseModel, ValidationError
from starlette.responses import Response

from sidecar.capabilities import BY_NAME
from sidecar.capabilities.align import AlignRequest, AlignResponse
from sidecar.capabilities.base import Meta
from sidecar.capabilities.emotion import EmotionRequest, EmotionResponse
from sidecar.capabilities.recording import RecordingRequest
from sidecar.capabilities.speech_emotion import SpeechEmotionRequest, SpeechEmotionResponse, join
from sidecar.capabilities.vad import VadRequest, VadResponse
from sidecar.errors import RunnerTimeoutError
from sidecar.inference.batcher import Priority
from sidecar.inference.residency import parse_keep_alive
from sidecar.server.audio import AudioSource, audio_source, read_audio
from sidecar.server.problem import from_validation
from sidecar.server.routes import Cut, infer_each
from sidecar.server.state import ServerState, state_of

router = APIRouter()

RequestT = TypeVar("RequestT", bound=RecordingRequest)
Work = Callable[[ServerState, RequestT, float], Awaitable[BaseModel]]


def documented(kind: type[RecordingRequest], **example: Any) -> dict[str, Any]:
    """For OpenAPI: the same fields as a JSON object and as a form."""
    schema = kind.model_json_schema()
    audio = {
        "audio_path": {"type": "string", "description": "file of this computer, inside SIDECAR_AUDIO_FOLDERS"},
        "audio": {"type": "string", "description": "base64 of an audio file"},
        "sample_rate": {"type": "integer", "description": "of bare PCM16, little-endian, mono (Hz)"},
    }
    upload = {"file": {"type": "string", "format": "binary"}}
    as_json = {**schema, "properties": {**schema["properties"], **audio}}
    as_form = {**schema, "properties": {**schema["properties"], **upload}}
    content = {"application/json": {"schema": as_json, "example": example}, "multipart/form-data": {"schema": as_form}}
    return {"requestBody": {"required": True, "content": content}}


@router.post(
    "/align/phonemes",
    tags=["align"],
    summary="When each sound and word of a text is said in a recording",
    response_model=AlignResponse,
    openapi_extra=documented(AlignRequest, text="Hello there.", audio_path="/tmp/hello.wav", visemes=True),
)
async def align_phonemes(request: Request) -> Response:
    return await _answer(request, AlignRequest, lambda *asked: infer(asked[0], "align", *asked[1:]))


@router.post(
    "/speech-emotion/detect",
    tags=["speech_emotion"],
    summary="Emotion of a voice, and with `text` of voice and words together",
    response_model=SpeechEmotionResponse,
    openapi_extra=documented(SpeechEmotionRequest, audio_path="/tmp/hello.wav", text="I am so happy today!"),
)
async def detect_speech_emotion(request: Request) -> Response:
    return await _answer(request, SpeechEmotionRequest, _hear_emotion)


@router.post(
    "/vad/detect",
    tags=["vad"],
    summary="Where in a recording somebody speaks",
    response_model=VadResponse,
    openapi_extra=documented(VadRequest, audio_path="/tmp/hello.wav", min_silence_ms=300),
)
async def detect_speech(request: Request) -> Response:
    return await _answer(request, VadRequest, lambda *asked: infer(asked[0], "vad", *asked[1:]))


async def _hear_emotion(state: ServerState, request: SpeechEmotionRequest, started: float) -> BaseModel:
    speech = infer(state, "speech_emotion", request, started)
    if request.text is None or not request.text.strip():
        return await speech
    words = EmotionRequest(text=request.text, keep_alive=request.keep_alive)
    hearing = asyncio.ensure_future(speech)
    try:
        [read] = await infer_each(state.pool, BY_NAME["emotion"], [words], Priority.INTERACTIVE)
        heard = await hearing
    finally:
        hearing.cancel()
    assert isinstance(heard, SpeechEmotionResponse) and isinstance(read, EmotionResponse)
    return join(heard, read, round((time.perf_counter() - started) * 1000, 3))


async def _answer(request: Request, kind: type[RequestT], work: Work[RequestT]) -> Response:
    """Read, decode, infer."""

    async def hear(cut: Cut, state: ServerState, source: AudioSource, options: dict[str, Any]) -> Response:
        started = time.perf_counter()
        asked = kind.model_validate(options)
        asked.hear((await read_audio(source, state.settings, state.decoder)).samples)
        response = await work(state, asked, started)
        return Response(response.model_dump_json(exclude_none=True), media_type="application/json")

    return await attend(request, hear)


async def attend(
    request: Request, work: Callable[[Cut, ServerState, AudioSource, dict[str, Any]], Awaitable[Response]]
) -> Response:
    """Take the request's body and answer with what `work` makes of it. Raises SidecarError.

    A client that goes cancels what is still to be done; so does REQUEST_TIMEOUT, unless `work` puts it off.
    """
    state = state_of(request)
    timeout_s = state.settings.request_timeout_s
    options: dict[str, Any] = {}
    with Cut() as cut:
        try:
            source, options = await audio_source(request)
            cut.after(timeout_s, "time")
            cut.watch(request.receive)
            return await work(cut, state, source, options)
        except ValidationError as error:
            return from_validation(error, options)
        except asyncio.CancelledError:
            if cut.reason == "gone":
                return Response()  # nobody is there to read it
            if cut.reason == "time":
                raise RunnerTimeoutError(f"no answer within {timeout_s:g} s (REQUEST_TIMEOUT)") from None
            raise


async def infer(state: ServerState, name: str, request: RecordingRequest, started: float) -> BaseModel:
    """The main path for a request whose recording has been decoded."""
    capability = BY_NAME[name]
    keep_alive_s = None if request.keep_alive is None else parse_keep_alive(request.keep_alive, 0.0)
    item = capability.prepare(request)
    order = (name, request.model, item, capability.cost(item), Priority.INTERACTIVE, keep_alive_s)
    spec, output = await state.pool.infer_by_best(*order)
    took_ms = round((time.perf_counter() - started) * 1000, 3)
    # In a thread: mouth shapes of ten minutes take longer than others should wait.
    response: BaseModel = await asyncio.to_thread(capability.finish, output, Meta(spec.id, took_ms, request))
    return response
