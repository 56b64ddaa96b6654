"""Framed messages between server and runner.

A frame is two 4-byte little-endian lengths, of what follows the first and of its head; the head, which is MessagePack
(msgspec); and what is too large to be copied into it. Arrays travel as raw bytes with dtype and shape in a MessagePack
extension: the bytes of small ones in it, those of large ones behind the head, so that sending and receiving an hour of
sound copies nothing. Neither side looks at elements, the server needs no numpy.
"""

import struct
from collections.abc import Iterator
from typing import Any

import msgspec

from sidecar.errors import WireError

MAX_FRAME_BYTES = 256 * 1024 * 1024
_ARRAY_EXT = 1
_DISTANT_EXT = 2
_LENGTH = struct.Struct("<I")
_LENGTHS = struct.Struct("<II")
# From here on a copy costs more than a part of its own.
_LARGE_BYTES = 1 << 16
_ALIGNMENT = 16

Parts = list[bytes | memoryview]


class Array:
    """An n-dimensional array, row-major and little-endian: `dtype` as numpy names it ("float32"), `shape`, `data`."""

    __slots__ = ("data", "dtype", "shape")

    def __init__(self, dtype: str, shape: tuple[int, ...], data: bytes | memoryview) -> None:
        self.dtype = dtype
        self.shape = shape
        self.data = data

    def numpy(self) -> Any:
        """The numpy array over the same memory, read-only. The server imports numpy only if something calls this."""
        import numpy as np

        return np.frombuffer(self.data, dtype=self.dtype).reshape(self.shape)


class Load(msgspec.Struct, tag="LOAD", frozen=True):
    """Server → runner, first and once: the model, as the catalogue has it, and what it may use."""

    spec: dict[str, Any]
    threads: int = 0
    """Threads it may use; 0 sizes them from the usable cores."""
    device: str = "auto"


class Infer(msgspec.Struct, tag="INFER", frozen=True):
    """Server → runner: run one batch of one capability; a stream has one item and is answered by CHUNKs."""

    id: int
    capability: str
    items: list[Any]
    credit: int = 0
    """Of a stream: CHUNKs that may be sent before the next CREDIT. 0: no stream."""


class Credit(msgspec.Struct, tag="CREDIT", frozen=True):
    """Server → runner: `chunks` more CHUNKs of stream `id` may be sent; its reader has kept up."""

    id: int
    chunks: int


class Cancel(msgspec.Struct, tag="CANCEL", frozen=True):
    """Server → runner: nobody waits for `id` any more; drop it if it has not begun, end it at the next CHUNK."""

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
    """Runner → server: a part of the output of stream `id`; an empty RESULT ends it."""

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


Message = Load | Infer | Credit | Cancel | Ready | Progress | Chunk | Result | Error


class _Packer:
    """MessagePack of one value; the bytes of its large arrays are kept apart, as they are."""

    def __init__(self) -> None:
        self.distant: Parts = []
        self._at = 0

    def pack(self, value: Any) -> bytes:
        return msgspec.msgpack.Encoder(enc_hook=self._encode).encode(value)

    def _encode(self, value: Any) -> Any:
        if isinstance(value, Array):
            return self._array(value)
        if hasattr(value, "__array_interface__"):
            return self._array(_from_numpy(value))
        raise NotImplementedError(f"{type(value).__name__} cannot cross the wire")

    def _array(self, array: Array) -> msgspec.msgpack.Ext:
        data = memoryview(array.data).cast("B") if array.data else b""
        if len(data) < _LARGE_BYTES:
            header = msgspec.msgpack.encode((array.dtype, array.shape))
            return msgspec.msgpack.Ext(_ARRAY_EXT, b"".join((_LENGTH.pack(len(header)), header, data)))
        padding = _padding(len(data))
        self.distant += [data, bytes(padding)] if padding else [data]
        at, self._at = self._at, self._at + len(data) + padding
        return msgspec.msgpack.Ext(_DISTANT_EXT, msgspec.msgpack.encode((array.dtype, array.shape, at, len(data))))


def _from_numpy(value: Any) -> Array:
    import numpy as np

    array = np.ascontiguousarray(value).astype(value.dtype.newbyteorder("<"), copy=False)
    if array.dtype.hasobject:
        raise NotImplementedError(f"an array of {array.dtype} cannot cross the wire")
    return Array(array.dtype.name, value.shape, array.reshape(-1).view(np.uint8).data)


def pack(value: Any) -> Parts:
    """An item's bytes, arrays included: equal for equal items. Raises what cannot be encoded."""
    packer = _Packer()
    return [packer.pack(value), *packer.distant]


def frame(message: Message) -> Parts:
    """One whole frame in parts, of which the large ones are the arrays' own memory.

    Raises WireError if it is over MAX_FRAME_BYTES or holds what cannot be encoded.
    """
    packer = _Packer()
    try:
        head = packer.pack(message)
    except (NotImplementedError, TypeError, ValueError) as error:
        raise WireError(f"cannot encode {type(message).__name__}: {error}") from None
    padding = _padding(_LENGTHS.size + len(head)) if packer.distant else 0
    length = _LENGTH.size + len(head) + padding + sum(map(len, packer.distant))
    if length > MAX_FRAME_BYTES:
        raise WireError(f"a frame of {length} bytes is over the limit of {MAX_FRAME_BYTES}")
    return [_LENGTHS.pack(length, len(head)) + head + bytes(padding), *packer.distant]


def encode(message: Message) -> bytes:
    """One whole frame in one piece. Raises as `frame`."""
    return b"".join(frame(message))


class Decoder:
    """Turns a byte stream into messages, whatever the sizes of its pieces."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """Yield the messages that `data` completes. Raises WireError on bytes that are no frames."""
        self._buffer += data
        position = 0
        try:
            while len(self._buffer) - position >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(self._buffer, position)
                if length > MAX_FRAME_BYTES:
                    raise WireError(
                        f"stream is no frame sequence: it announces {length} bytes ({bytes(self._buffer[:16])!r})"
                    )
                begin, end = position + _LENGTH.size, position + _LENGTH.size + length
                if len(self._buffer) < end:
                    return
                if position == 0 and length >= _LARGE_BYTES:
                    # Given away as it is, with what arrived behind it: arrays point into it from now on.
                    whole, self._buffer = self._buffer, self._buffer[end:]
                    yield decode(memoryview(whole)[begin:end].toreadonly())
                else:
                    # A copy, because decoded arrays point into it while the buffer goes on being filled.
                    body = bytes(memoryview(self._buffer)[begin:end])
                    position = end
                    yield decode(body)
        finally:
            del self._buffer[:position]


def decode(body: bytes | memoryview) -> Message:
    """One message from what follows a frame's first length. Raises WireError."""
    try:
        (head_bytes,) = _LENGTH.unpack_from(body)
        end = _LENGTH.size + head_bytes
        head = memoryview(body)[_LENGTH.size : end]
        if end == len(body):
            message: Message = _decoder.decode(head)
            return message
        distant = memoryview(body)[end + _padding(_LENGTHS.size + head_bytes) :]
        return _unpack(head, distant)
    except (msgspec.DecodeError, ValueError, struct.error) as error:
        raise WireError(f"frame of {len(body)} bytes is no message: {error}") from None


def _unpack(head: memoryview, distant: memoryview) -> Message:
    def decode_ext(code: int, data: memoryview) -> Array:
        if code != _DISTANT_EXT:
            return _decode_ext(code, data)
        dtype, shape, at, size = msgspec.msgpack.decode(data, type=tuple[str, tuple[int, ...], int, int])
        if at < 0 or size < 0 or at + size > len(distant):
            raise ValueError("an array lies outside its frame")
        return Array(dtype, shape, distant[at : at + size])

    message: Message = msgspec.msgpack.Decoder(Message, ext_hook=decode_ext).decode(head)
    return message


def _decode_ext(code: int, data: memoryview) -> Array:
    if code != _ARRAY_EXT:
        raise ValueError(f"unknown extension {code}")
    (header_bytes,) = _LENGTH.unpack(data[:4])
    dtype, shape = msgspec.msgpack.decode(data[4 : 4 + header_bytes], type=tuple[str, tuple[int, ...]])
    return Array(dtype, shape, data[4 + header_bytes :])


def _padding(size: int) -> int:
    """From there to where arrays like to lie."""
    return -size % _ALIGNMENT


_decoder = msgspec.msgpack.Decoder(Message, ext_hook=_decode_ext)
