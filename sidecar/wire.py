"""Framed messages between server and runner.

A frame is a 4-byte little-endian length and that many bytes of MessagePack (msgspec). Arrays travel as raw bytes with
dtype and shape in a MessagePack extension: neither side copies them element by element, the server needs no numpy.
"""

import struct
from collections.abc import Iterator
from typing import Any

import msgspec

from sidecar.errors import WireError

MAX_FRAME_BYTES = 256 * 1024 * 1024
_ARRAY_EXT = 1
_LENGTH = struct.Struct("<I")


class Array:
    """An n-dimensional array, row-major and little-endian: `dtype` as numpy names it ("float32"), `shape`, `data`."""

    __slots__ = ("data", "dtype", "shape")

    def __init__(self, dtype: str, shape: tuple[int, ...], data: bytes | memoryview) -> None:
        self.dtype = dtype
        self.shape = shape
        self.data = data


class Infer(msgspec.Struct, tag="INFER", frozen=True):
    """Server → runner: run one batch of one capability."""

    id: int
    capability: str
    items: list[Any]


class Cancel(msgspec.Struct, tag="CANCEL", frozen=True):
    """Server → runner: nobody waits for batch `id` any more; drop it if it has not begun."""

    id: int


class Ready(msgspec.Struct, tag="READY", frozen=True):
    """Runner → server: the model is loaded and warmed up."""

    device: str
    device_reason: str
    load_ms: float
    parallel: int = 1
    """Batches that it computes at the same time."""


class Progress(msgspec.Struct, tag="PROGRESS", frozen=True):
    """Runner → server: still loading; extends the READY deadline."""

    item: str
    done: int
    total: int
    unit: str


class Chunk(msgspec.Struct, tag="CHUNK", frozen=True):
    """Runner → server: a part of a streamed output of batch `id`."""

    id: int
    output: Any


class Result(msgspec.Struct, tag="RESULT", frozen=True):
    """Runner → server: one output per item, in the items' order."""

    id: int
    outputs: list[Any]


class Error(msgspec.Struct, tag="ERROR", frozen=True):
    """Runner → server: batch `id` failed, or with id 0 the load did."""

    id: int
    code: str
    message: str
    retryable: bool


Message = Infer | Cancel | Ready | Progress | Chunk | Result | Error


def _encode_other(value: Any) -> Any:
    if isinstance(value, Array):
        header = msgspec.msgpack.encode((value.dtype, value.shape))
        return msgspec.msgpack.Ext(_ARRAY_EXT, _LENGTH.pack(len(header)) + header + bytes(value.data))
    raise NotImplementedError(f"{type(value).__name__} cannot cross the wire")


def _decode_ext(code: int, data: memoryview) -> Any:
    if code != _ARRAY_EXT:
        raise ValueError(f"unknown extension {code}")
    (header_bytes,) = _LENGTH.unpack(data[:4])
    dtype, shape = msgspec.msgpack.decode(data[4 : 4 + header_bytes], type=tuple[str, tuple[int, ...]])
    return Array(dtype, shape, data[4 + header_bytes :])


_encoder = msgspec.msgpack.Encoder(enc_hook=_encode_other)
_decoder = msgspec.msgpack.Decoder(Message, ext_hook=_decode_ext)


def encode(message: Message) -> bytes:
    """One whole frame. Raises WireError if it is over MAX_FRAME_BYTES or holds what cannot be encoded."""
    try:
        body = _encoder.encode(message)
    except (NotImplementedError, TypeError, ValueError) as error:
        raise WireError(f"cannot encode {type(message).__name__}: {error}") from None
    if len(body) > MAX_FRAME_BYTES:
        raise WireError(f"a frame of {len(body)} bytes is over the limit of {MAX_FRAME_BYTES}")
    return _LENGTH.pack(len(body)) + body


class Decoder:
    """Turns a byte stream into messages, whatever the sizes of its pieces."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """Yield the messages that `data` completes. Raises WireError on bytes that are no frames."""
        self._buffer += data
        position = 0
        try:
            while len(self._buffer) - position >= 4:
                (length,) = _LENGTH.unpack_from(self._buffer, position)
                if length > MAX_FRAME_BYTES:
                    raise WireError(
                        f"stream is no frame sequence: it announces {length} bytes ({bytes(self._buffer[:16])!r})"
                    )
                end = position + 4 + length
                if len(self._buffer) < end:
                    return
                # A copy, because decoded arrays point into it while the buffer goes on being filled.
                frame = bytes(memoryview(self._buffer)[position + 4 : end])
                position = end
                yield decode(frame)
        finally:
            del self._buffer[:position]


def decode(frame: bytes) -> Message:
    """One message from a frame's body. Raises WireError."""
    try:
        message: Message = _decoder.decode(frame)
        return message
    except (msgspec.DecodeError, ValueError, struct.error) as error:
        raise WireError(f"frame of {len(frame)} bytes is no message: {error}") from None
