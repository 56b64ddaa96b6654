"""Audio of a request, however it is brought: uploaded, as base64, as bare samples, or as a path on this computer."""

import asyncio
import io
import os
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any, BinaryIO, NamedTuple

import msgspec
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from sidecar.capabilities.decode import DecodeItem
from sidecar.capabilities.samples import Audio
from sidecar.errors import AudioError, AudioTooLongError, BadRequestError, BodyTimeoutError, DiskFullError, InputError
from sidecar.process import readable_by_child, usable_cores
from sidecar.server.allowed import open_allowed
from sidecar.server.decoder import Decoder
from sidecar.server.inline import Text, decoded, let_go, parse
from sidecar.server.pcm import Stopped, decode_pcm, decode_wav, find_wav, is_container
from sidecar.settings import Settings
from sidecar.wire import Array

__all__ = ["AUDIO_PATHS", "Audio", "AudioSource", "audio_source", "read_audio"]

# Routes whose body may be as large as SIDECAR_MAX_AUDIO_BYTES.
AUDIO_PATHS = frozenset(
    [
        "/asr/transcribe",
        "/v1/audio/transcriptions",
        "/v1/audio/translations",
        "/vad/detect",
        "/align/phonemes",
        "/speech-emotion/detect",
        "/predict",
    ]
)
_SILENCE_S = 30.0
_LARGE_BODY_BYTES = 1_000_000
_PARALLEL = 4
_FILES = 8  # that are read to be counted; one is taken


@dataclass(frozen=True)
class Upload:
    """A file of a multipart body; it is closed when it has been read."""

    file: BinaryIO
    sample_rate: int | None = None


@dataclass(frozen=True)
class Encoded:
    """Base64, with or without a `data:` head."""

    text: Text
    sample_rate: int | None = None


@dataclass(frozen=True)
class LocalFile:
    """A file of this computer."""

    path: str
    sample_rate: int | None = None


AudioSource = Upload | Encoded | LocalFile
"""With a `sample_rate`, what has no container's head is PCM16, little-endian, mono."""


async def read_audio(source: AudioSource, settings: Settings, decoder: Decoder) -> Audio:
    """Bare samples and plain WAV in a worker thread, everything else in the decoder process; cancelling stops it.

    Raises AudioError, AudioTooLongError, AudioNotFoundError (all InputError); OverloadedError, ShuttingDownError.
    """
    stop = threading.Event()
    reading = asyncio.get_running_loop().run_in_executor(_workers(), _read, source, settings, stop)
    try:
        found = await asyncio.shield(reading)
    except asyncio.CancelledError:
        stop.set()
        reading.add_done_callback(_discard)
        raise
    if isinstance(found, Audio):
        return found
    with found.file:
        return await decoder.decode(found.item)


async def audio_source(request: Request) -> tuple[AudioSource, dict[str, Any]]:
    """Where the audio is, and every other field of the body: multipart (`file` and form fields) or a JSON object
    (`audio_path`, or `audio` with perhaps `sample_rate`). A field that a form repeats becomes a list.

    Raises InputError, BadRequestError, BodyTimeoutError, DiskFullError.
    """
    request = Request(request.scope, _impatient(request))
    try:
        if request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
            fields = await _form(request)
        else:
            fields = await _json(request)
    except ClientDisconnect:
        raise BadRequestError("the client went before its body was complete") from None
    sample_rate = _sample_rate(fields.pop("sample_rate", None))
    given = [name for name in ("file", "audio", "audio_path") if fields.get(name) is not None]
    if len(given) != 1:
        found = f"found {' and '.join(given)}" if given else "found none of them"
        told = f"send the audio once, as `file` (upload), `audio` (base64) or `audio_path`: {found}"
        raise InputError(told, field=given[0] if given else "file")
    value = fields.pop(given[0])
    options = {name: option for name, option in fields.items() if name not in ("file", "audio", "audio_path")}
    if given[0] == "file":
        if not isinstance(value, UploadFile):
            raise InputError("`file` is no file upload: in multipart/form-data it needs a filename", field="file")
        return Upload(value.file, sample_rate), options
    if given[0] == "audio" and isinstance(value, str | memoryview):
        return Encoded(value, sample_rate), options
    if not isinstance(value, str):
        raise InputError(f"{given[0]}: not a string", field=given[0])
    return LocalFile(value, sample_rate), options


@cache
def _workers() -> ThreadPoolExecutor:
    # A few at a time: each may hold an hour of sound.
    return ThreadPoolExecutor(min(_PARALLEL, usable_cores()), thread_name_prefix="audio")


class _Undecoded(NamedTuple):
    """For the decoder: the file stays open until it has done."""

    file: BinaryIO
    item: DecodeItem


def _read(source: AudioSource, settings: Settings, stop: threading.Event) -> Audio | _Undecoded:
    file = _opened(source, settings)
    sample_rate = source.sample_rate
    found: Audio | _Undecoded | None = None
    try:
        if stop.is_set():
            raise Stopped
        file.seek(0)
        head = file.read(12)
        if not head:
            raise AudioError("the audio is empty: it has 0 bytes")
        if sample_rate is not None and not is_container(head):
            found = decode_pcm(file, sample_rate, settings.max_audio_s, stop)
        elif wav := find_wav(file):
            found = decode_wav(file, wav, settings.max_audio_s, stop)
        else:
            found = _Undecoded(file, _item(file, settings))
        return found
    finally:
        if not isinstance(found, _Undecoded):
            file.close()


def _opened(source: AudioSource, settings: Settings) -> BinaryIO:
    if isinstance(source, LocalFile):
        return open_allowed(source.path, settings.audio_dirs)
    if isinstance(source, Upload):
        return source.file
    try:
        return decoded(source.text)
    finally:
        if isinstance(source.text, memoryview):
            let_go(source.text)


def _item(file: BinaryIO, settings: Settings) -> DecodeItem:
    """What the decoder gets: where it can, the open file itself and not its bytes."""
    size_bytes = file.seek(0, 2)
    # An upload's file has a descriptor only once it is too large for memory; asking would put it on disk.
    descriptor = -1 if isinstance(file, io.BytesIO) or getattr(file, "_rolled", True) is False else file.fileno()
    path = readable_by_child(descriptor) if descriptor >= 0 else None
    if path is not None:
        is_ = os.fstat(descriptor)
        identity = (is_.st_dev, is_.st_ino, is_.st_size, is_.st_mtime_ns)
        return {"data": None, "path": path, "identity": identity, "max_s": settings.max_audio_s}
    if size_bytes > settings.max_audio_bytes:
        raise AudioTooLongError(
            f"the file has {size_bytes} bytes; the limit is {settings.max_audio_bytes} (SIDECAR_MAX_AUDIO_BYTES)"
        )
    file.seek(0)
    data = Array("uint8", (size_bytes,), file.read())
    return {"data": data, "path": None, "identity": (), "max_s": settings.max_audio_s}


def _discard(reading: "asyncio.Future[Audio | _Undecoded]") -> None:
    """Nobody takes what has been read."""
    if not reading.cancelled() and reading.exception() is None and isinstance(found := reading.result(), _Undecoded):
        found.file.close()


async def _form(request: Request) -> dict[str, Any]:
    try:
        form = await request.form(max_files=_FILES, max_fields=64)
    except HTTPException as error:
        raise BadRequestError(f"the multipart body cannot be read: {error.detail}") from None
    except MultiPartException as error:
        raise BadRequestError(f"the multipart body cannot be read: {error.message}") from None
    except OSError as error:
        # Heard to its end all the same: a client that still sends when we hang up never reads the answer.
        while (await request.receive()).get("more_body"):
            pass
        said = f"the upload cannot be kept in {tempfile.gettempdir()}: {error.strerror}"
        raise DiskFullError(f"{said}; free some space there or set TMPDIR") from None
    try:
        _check_uploads([name for name, value in form.multi_items() if isinstance(value, UploadFile)])
    except InputError:
        await form.close()
        raise
    repeated = {name: form.getlist(name) for name in form}
    return {name: values[0] if len(values) == 1 else values for name, values in repeated.items()}


def _check_uploads(names: list[str]) -> None:
    if len(names) > 1:
        raise InputError(f"{len(names)} files came ({', '.join(names)}): send one, as `file`", field="file")
    if names and names[0] != "file":
        raise InputError(f"{names[0]}: is a file upload; only the part `file` may be one", field=names[0])


async def _json(request: Request) -> dict[str, Any]:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
    try:
        large = len(body) > _LARGE_BODY_BYTES
        fields = await asyncio.to_thread(parse, body, "audio") if large else parse(body, "audio")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequestError(f"the body is neither multipart/form-data nor valid JSON: {error}") from None
    if not isinstance(fields, dict):
        raise InputError("body: not a JSON object")
    return fields


def _sample_rate(value: Any) -> int | None:
    if value is None:
        return None
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"sample_rate: {str(value)[:40]!r} is no whole number", field="sample_rate") from None


def _impatient(request: Request) -> Any:
    """`receive` that does not wait for ever for a body."""

    async def receive() -> Message:
        try:
            return await asyncio.wait_for(request.receive(), _SILENCE_S)
        except asyncio.TimeoutError:
            raise BodyTimeoutError(f"nothing of the request's body arrived for {_SILENCE_S:g} s") from None

    return receive
