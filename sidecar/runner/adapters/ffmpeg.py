"""FFmpeg (PyAV) as a decoder process: the runner of no model, kept and watched as runners are.

Files come from anywhere, and FFmpeg is a large body of C: what a malformed one brings down is this process alone. The
machinery of the runners fits as it is, so decoding is an adapter and not a second kind of child.
"""

import errno
import io
import os
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, cast

from sidecar import process
from sidecar.capabilities.decode import Decoded, DecodeItem
from sidecar.capabilities.recording import SAMPLE_RATE
from sidecar.capabilities.samples import MAX_CHANNELS, Resampler, cut_off, mean_of_channels, too_long
from sidecar.catalogue.spec import ModelSpec
from sidecar.errors import AudioError, OutOfMemoryError
from sidecar.runner.adapters import Report

if TYPE_CHECKING:
    from sidecar.capabilities.samples import Samples

# Formats that hold their sound themselves. Playlists, session descriptions, concatenations and device grabbers, which
# make the library open further files or the network, are not among them.
_CONTAINERS = "aac,ac3,aiff,amr,amrnb,amrwb,asf,au,caf,eac3,flac,matroska,webm,mov,mp3,ogg,w64,wav"
_CODECS = ("aac", "ac3", "adpcm", "alac", "amr", "eac3", "flac", "g722", "g726", "gsm", "libopencore", "libopus",
           "mp1", "mp2", "mp3", "opus", "pcm", "speex", "vorbis", "wma")  # fmt: skip

_DTYPES = {"u8": "u1", "s16": "i2", "s32": "i4", "s64": "i8", "flt": "f4", "dbl": "f8"}
# A piece of the answer: a sign of life, small enough to be received between two requests of others.
_PIECE_S = 5.0
# Share of packets that may be damaged: a recording with a few bad ones is still worth hearing.
_MAX_DAMAGE = 0.05
# Containers whose header states the length, and by how much the sound may fall short of it: edit lists, codec delay.
_STATED = {"wav": 0.05, "w64": 0.05, "flac": 0.05, "aiff": 0.05, "caf": 0.05, "mov": 0.5, "matroska": 0.5}
# Recorders that cannot seek back leave "endless" in the header: sizes from here on announce nothing.
_ENDLESS_BYTES = 0x7FFF0000


class ReadableFile(Protocol):
    """What the decoder needs of a file."""

    def read(self, size: int = -1, /) -> bytes: ...

    def seek(self, offset: int, whence: int = 0, /) -> int: ...

    def tell(self) -> int: ...


class FfmpegAdapter:
    """Decodes. `memory_limit_mb` of the spec is what the process may allocate, where the system can hold it to that."""

    def __init__(self, spec: ModelSpec, threads: int, device: str) -> None:
        self.device = "cpu"
        self.device_reason = "FFmpeg"
        self._spec = spec

    def load(self, report: Report) -> None:
        import av  # noqa: F401  (what the first request would wait for)
        import soxr  # noqa: F401

        _codecs()
        process.limit_memory(self._spec.memory_limit_mb << 20)

    def decode(self, item: DecodeItem) -> Iterator[Decoded]:
        try:
            with _opened(item) as file:
                yield from decode(file, item["max_s"])
        except MemoryError:
            # Perhaps another file's fault: the server tries once more, with nothing beside it.
            limit_mb = self._spec.memory_limit_mb
            raise OutOfMemoryError(f"to decode this audio takes more memory than there is ({limit_mb} MiB)") from None


def _opened(item: DecodeItem) -> BinaryIO:
    if item["path"] is None:
        return io.BytesIO(item["data"].data)
    try:
        descriptor = os.open(item["path"], os.O_RDONLY)
        found = os.fstat(descriptor)
    except OSError as error:
        raise AudioError(f"the audio cannot be read any more: {error.strerror}") from None
    file = open(descriptor, "rb")  # noqa: SIM115  (the caller closes it)
    if [found.st_dev, found.st_ino] != list(item["identity"][:2]):
        file.close()
        raise AudioError("the audio cannot be read any more: its request has ended")
    return file


def decode(file: ReadableFile, max_s: float) -> Iterator[Decoded]:
    """A file of any container and codec that is let in, in pieces. Raises AudioError, AudioTooLongError, MemoryError.

    Memory is bounded by a piece, length by `max_s`, whatever the header says.
    """
    import av

    resampler = Resampler(max_s)
    try:
        with av.open(
            cast(Any, _Nameless(file)),
            "r",
            container_options={
                "format_whitelist": _CONTAINERS,
                "codec_whitelist": _codecs(),
                "protocol_whitelist": "",
            },
            metadata_errors="replace",
            io_open=_refuse,
        ) as container:
            stream = next(iter(container.streams.audio), None)
            if stream is None or stream.codec_context is None:
                raise AudioError(f"the file holds no {'audio stream' if stream is None else 'codec that is known'}")
            announced_s, slack_s = _announced(container, stream)
            if announced_s is not None and announced_s > max_s:
                raise too_long(announced_s, max_s)
            for frame in _frames(container, stream):
                resampler.put(_mono(frame), frame.sample_rate)
                if resampler.held_s >= _PIECE_S:
                    yield _piece(resampler)
            resampler.finish()
    except (av.FFmpegError, ValueError, OverflowError, RuntimeError) as error:
        if getattr(error, "errno", None) == errno.ENOMEM:
            raise MemoryError from None
        cure = "; bare PCM16 needs its `sample_rate`" if isinstance(error, av.InvalidDataError) else ""
        raise AudioError(f"this is no audio that can be decoded: {_reason(error)}{cure}") from None
    yield _piece(resampler)
    held_s = resampler.samples / SAMPLE_RATE
    if held_s and announced_s is not None and announced_s - held_s > slack_s:
        raise cut_off(f"{announced_s:.2f} s", f"{held_s:.2f} s")


def _piece(resampler: Resampler) -> Decoded:
    import numpy as np

    return {"samples": np.frombuffer(resampler.take(), np.float32), "sample_rate": resampler.source_rate}


class _Nameless:
    """A file without its name, by which the library would guess the format; what it holds decides."""

    def __init__(self, file: ReadableFile) -> None:
        self.read, self.seek, self.tell = file.read, file.seek, file.tell


def _refuse(url: str, *_: object) -> None:
    raise PermissionError(f"audio may not open {url!r}")


@cache
def _codecs() -> str:
    import av

    return ",".join(sorted(name for name in av.codecs_available if name.startswith(_CODECS)))


def _frames(container: Any, stream: Any) -> Iterator[Any]:
    """Frames of all packets; raises AudioError when too many of them are damaged."""
    import av

    packets = damaged = 0
    demuxed = container.demux(stream)
    while True:
        try:
            packet = next(demuxed, None)
            if packet is None:
                break
            packets += 1
            yield from packet.decode()
        except (av.FFmpegError, IndexError) as error:  # the latter for a packet of a stream that nobody has announced
            if isinstance(error, MemoryError):
                raise
            damaged += 1  # a demuxer that fails is at its end
    if damaged > 1 and damaged > _MAX_DAMAGE * packets:
        raise AudioError(f"the audio is damaged: {damaged} of {packets} packets cannot be decoded")


def _mono(frame: Any) -> "Samples":
    import numpy as np

    channels = len(frame.layout.channels)
    # A frame has eight pointers to planes; beyond, the library looks for their end where there is none.
    if not 1 <= channels <= MAX_CHANNELS:
        raise AudioError(f"the audio has {channels} channels: not within 1 to {MAX_CHANNELS}")
    dtype = _DTYPES[frame.format.packed.name]
    if frame.format.is_planar:
        # Not the library's own conversion, which takes what lies behind the eighth plane for a ninth.
        return mean_of_channels(
            np.stack([np.frombuffer(plane, dtype, frame.samples) for plane in frame.planes[:channels]])
        )
    return mean_of_channels(np.frombuffer(frame.planes[0], dtype, frame.samples * channels).reshape(-1, channels).T)


def _announced(container: Any, stream: Any) -> tuple[float | None, float]:
    """The length (s) that the header states, if it is no estimate from bit rate and file size; and the slack (s)."""
    name = container.format.name.split(",")[0]
    slack_s = _STATED.get(name, 0.0)
    if name == "matroska":  # of the longest track
        alone = len(container.streams) == 1 and container.duration
        return (container.duration / 1_000_000 if alone else None), slack_s
    if name not in _STATED or not stream.duration:
        return None, slack_s
    seconds = float(stream.duration * stream.time_base)
    width = stream.channels * stream.codec_context.format.bytes if stream.codec_context.format else 1
    return (None if seconds * (stream.rate or 0) * width >= _ENDLESS_BYTES and name == "wav" else seconds), slack_s


def _reason(error: BaseException) -> str:
    logged = getattr(error, "log", None)
    text = logged[2] if logged else getattr(error, "strerror", None) or str(error)
    if "whitelist" in text:
        text = f"the format {logged[1] if logged else ''} is not accepted"
    return "".join(letter for letter in str(text)[:200] if letter.isprintable()).strip()
