"""Audio out: int16 mono as it is made, to bytes of a file as early as the format allows.

Nothing here can seek back, as what was sent is gone: headers are final from the beginning, and say so of lengths that
nobody knows yet. PyAV, soxr and numpy are imported when the first request needs them.
"""

import struct
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, NamedTuple, cast

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import OutputContainer

OPENAI_PCM_RATE = 24_000
_OPUS_RATES = (24_000, 48_000)
_UNKNOWN_LENGTH = 0xFFFFFFFF  # what players take as "to the end of the stream"


class _Codec(NamedTuple):
    """How PyAV makes a format: muxer, codec, and options of both."""

    container: str
    codec: str
    bits_per_s: int | None
    container_options: dict[str, str]
    codec_options: dict[str, str]


_CODECS = {
    # An Xing header would have to be filled in at the end; nobody could.
    "mp3": _Codec("mp3", "libmp3lame", 96_000, {"write_xing": "0", "id3v2_version": "0"}, {}),
    # A page holds back what it has not filled: 0.1 s of it, instead of a second.
    "opus": _Codec("ogg", "libopus", 48_000, {"page_duration": "100000"}, {"application": "audio"}),
    "flac": _Codec("flac", "flac", None, {}, {"compression_level": "5"}),
    "aac": _Codec("adts", "aac", 96_000, {}, {}),
}
MEDIA_TYPES = {
    "wav": "audio/wav",
    "pcm": "audio/pcm",
    "mp3": "audio/mpeg",
    "opus": "audio/ogg; codecs=opus",
    "flac": "audio/flac",
    "aac": "audio/aac",
}


class Encoder(ABC):
    """One stream. `heavy` work belongs into a thread; calls must not overlap."""

    sample_rate: int
    heavy = True

    @abstractmethod
    def feed(self, samples: bytes | memoryview, last: bool = False) -> bytes:
        """Bytes that can leave now. `samples` are int16, little-endian; `last` says that no more will come."""

    @abstractmethod
    def finish(self) -> bytes:
        """What is left."""


def make_encoder(format: str, sample_rate: int, wanted_rate: int | None = None) -> Encoder:
    """An encoder for audio of `sample_rate`; `wanted_rate` resamples."""
    rate = encoded_rate(format, sample_rate, wanted_rate)
    inner = _Compressed(_CODECS[format], rate) if format in _CODECS else _Plain(rate, with_header=format == "wav")
    return inner if rate == sample_rate else _Resampled(inner, sample_rate)


def encoded_rate(format: str, sample_rate: int, wanted_rate: int | None = None) -> int:
    """Sample rate of the file: Opus has rates of its own, of which it takes one that loses nothing."""
    return wanted_rate or (_OPUS_RATES[sample_rate > _OPUS_RATES[0]] if format == "opus" else sample_rate)


class _Plain(Encoder):
    heavy = False

    def __init__(self, sample_rate: int, with_header: bool) -> None:
        self.sample_rate = sample_rate
        self._header_due = with_header

    def feed(self, samples: bytes | memoryview, last: bool = False) -> bytes:
        if not self._header_due:
            return bytes(samples)
        self._header_due = False
        return wav_header(self.sample_rate, len(samples) if last else None) + samples

    def finish(self) -> bytes:
        return self.feed(b"", last=True)


def wav_header(sample_rate: int, data_bytes: int | None) -> bytes:
    """RIFF header of int16 mono; None where the length is not known."""
    whole = _UNKNOWN_LENGTH if data_bytes is None else data_bytes + 36
    data = _UNKNOWN_LENGTH if data_bytes is None else data_bytes
    fields = (b"RIFF", whole, b"WAVE", b"fmt ", 16, 1, 1, sample_rate, sample_rate * 2, 2, 16, b"data", data)
    return struct.pack("<4sI4s4sIHHIIHH4sI", *fields)


class _Resampled(Encoder):
    """Another sample rate before the encoder proper."""

    def __init__(self, inner: Encoder, sample_rate: int) -> None:
        import numpy as np
        import soxr

        self.sample_rate = inner.sample_rate
        self._inner = inner
        self._int16 = np.dtype("<i2")
        self._from_bytes: Any = np.frombuffer
        self._stream = soxr.ResampleStream(sample_rate, inner.sample_rate, 1, dtype="int16")
        self._ended = False

    def feed(self, samples: bytes | memoryview, last: bool = False) -> bytes:
        self._ended = last
        resampled = self._stream.resample_chunk(self._from_bytes(samples, dtype=self._int16), last=last)
        return self._inner.feed(resampled.tobytes(), last)

    def finish(self) -> bytes:
        rest = b"" if self._ended else self.feed(b"", last=True)
        return rest + self._inner.finish()


class _Sink:
    """Where the muxer writes to. It has no `seek`, so nothing tries to."""

    def __init__(self) -> None:
        self._written = bytearray()

    def write(self, data: bytes) -> int:
        self._written += data
        return len(data)

    def take(self) -> bytes:
        taken = bytes(self._written)
        self._written.clear()
        return taken


class _Compressed(Encoder):
    def __init__(self, codec: _Codec, sample_rate: int) -> None:
        import av

        self.sample_rate = sample_rate
        self._sink = _Sink()
        options = {"flush_packets": "1", **codec.container_options}
        self._container: OutputContainer = av.open(self._sink, "w", format=codec.container, options=options)
        stream = self._container.add_stream(codec.codec, rate=sample_rate, layout="mono")
        self._stream = cast("AudioStream", stream)
        self._stream.codec_context.options = codec.codec_options
        if codec.bits_per_s:
            self._stream.codec_context.bit_rate = codec.bits_per_s
        self._make_frame: Any = av.AudioFrame
        self._samples = 0

    def feed(self, samples: bytes | memoryview, last: bool = False) -> bytes:
        if len(samples):
            frame = self._make_frame(format="s16", layout="mono", samples=len(samples) // 2)
            frame.planes[0].update(_padded(samples, frame.planes[0].buffer_size))
            frame.sample_rate = self.sample_rate
            frame.pts = self._samples
            self._samples += len(samples) // 2
            self._container.mux(self._stream.encode(frame))
        return self._sink.take()

    def finish(self) -> bytes:
        self._container.mux(self._stream.encode(None))
        self._container.close()
        return self._sink.take()


def _padded(samples: bytes | memoryview, size: int) -> bytes:
    # A plane of a frame is aligned, and takes only all of its bytes.
    return bytes(samples).ljust(size, b"\0")
