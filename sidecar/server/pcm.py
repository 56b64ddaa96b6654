"""Sound that needs no decoder: bare samples and plain WAV, read with numpy in the server itself.

What is anything but plain is left to the decoder. Cut-off RIFF files are found here for both: FFmpeg takes a WAV that
was cut off for a short one, and allocates what a chunk says it has.
"""

import struct
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from sidecar.capabilities.samples import (
    MAX_CHANNELS,
    MAX_RATE,
    MIN_RATE,
    PIECE_S,
    Audio,
    Resampler,
    cut_off,
    mean_of_channels,
    too_long,
)
from sidecar.errors import AudioError

if TYPE_CHECKING:
    from sidecar.capabilities.samples import Samples

# Recorders that cannot seek back leave "endless" in the header: sizes from here on announce nothing.
_ENDLESS_BYTES = 0x7FFF0000
_CHUNKS = 64
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
# The rest of an extensible format's GUID, after the format's number.
_GUID = bytes.fromhex("000000001000800000aa00389b71")
# By format and bits; 24 bits have no dtype and are widened.
_DTYPES = {
    (_PCM, 8): "u1",
    (_PCM, 16): "<i2",
    (_PCM, 24): "<i4",
    (_PCM, 32): "<i4",
    (_FLOAT, 32): "<f4",
    (_FLOAT, 64): "<f8",
}
_MAGICS = (b"RIFF", b"RF64", b"fLaC", b"OggS", b"ID3", b"\x1aE\xdf\xa3", b"FORM", b"caff")


class Stopped(Exception):
    """Nobody waits for it any more."""


class Wav(NamedTuple):
    """A plain WAV file: where its samples lie and what they are."""

    at: int
    size_bytes: int
    dtype: str
    sample_bytes: int
    channels: int
    rate: int


def is_container(head: bytes) -> bool:
    """Whether these first bytes are those of an audio file, and not bare samples."""
    return head.startswith(_MAGICS) or head[4:8] == b"ftyp"


def decode_pcm(file: BinaryIO, sample_rate: int, max_s: float, stop: threading.Event) -> Audio:
    """Bare samples: PCM16, little-endian, mono. Raises AudioError, AudioTooLongError, Stopped."""
    if not MIN_RATE <= sample_rate <= MAX_RATE:
        raise AudioError(f"sample_rate={sample_rate}: not within {MIN_RATE} to {MAX_RATE} Hz")
    size_bytes = file.seek(0, 2)
    if size_bytes % 2:
        raise AudioError(f"{size_bytes} bytes are no PCM16: the number is odd")
    return decode_wav(file, Wav(0, size_bytes, "<i2", 2, 1, sample_rate), max_s, stop)


def decode_wav(file: BinaryIO, wav: Wav, max_s: float, stop: threading.Event) -> Audio:
    """The sound of a plain WAV. Raises AudioError, AudioTooLongError, Stopped."""
    announced_s = wav.size_bytes // (wav.sample_bytes * wav.channels) / wav.rate
    if announced_s > max_s:
        raise too_long(announced_s, max_s)
    resampler = Resampler(max_s)
    for piece in _pieces(file, wav):
        if stop.is_set():
            raise Stopped
        resampler.put(piece, wav.rate)
    resampler.finish()
    return Audio.of(resampler.take(), wav.rate)


def _pieces(file: BinaryIO, wav: Wav) -> "Iterator[Samples]":
    import numpy as np

    width = wav.sample_bytes * wav.channels
    file.seek(wav.at)
    left = wav.size_bytes
    while left and (data := file.read(min(left, width * int(wav.rate * PIECE_S)))):
        left -= len(data)
        data = data[: len(data) // width * width]  # recorders that were ended in the middle of a frame
        if wav.sample_bytes == 3:
            wide = np.zeros((len(data) // 3, 4), np.uint8)
            wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
            data = wide.tobytes()
        yield mean_of_channels(np.frombuffer(data, wav.dtype).reshape(-1, wav.channels).T)


def find_wav(file: BinaryIO) -> Wav | None:
    """Where a plain WAV has its samples; None for everything else. Raises AudioError for one that is cut off."""
    file.seek(0)
    head = file.read(12)
    if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
        return None
    size_bytes = file.seek(0, 2)
    at, form = 12, b""
    for _ in range(_CHUNKS):
        file.seek(at)
        chunk = file.read(8)
        if len(chunk) < 8:
            return None
        name, length = struct.unpack("<4sI", chunk)
        held = size_bytes - at - 8
        if held + 1 < length and (name != b"data" or length < _ENDLESS_BYTES):
            raise cut_off(f"{length} bytes of {name.decode('ascii', 'replace').strip()!r}", f"{held}")
        if name == b"fmt " and not form:
            form = file.read(min(length, 40))
        if name == b"data":
            return _plain(form, at + 8, min(length, held))
        at += 8 + length + length % 2
    return None


def _plain(form: bytes, at: int, size_bytes: int) -> Wav | None:
    if len(form) < 16 or not size_bytes:
        return None
    kind, channels, rate, _, block, bits = struct.unpack_from("<HHIIHH", form)
    if kind == _EXTENSIBLE and len(form) == 40 and form[26:] == _GUID:
        valid_bits, _, kind = struct.unpack_from("<HIH", form, 18)
        bits = bits if valid_bits == bits else 0
    dtype = _DTYPES.get((kind, bits))
    fits = 1 <= channels <= MAX_CHANNELS and MIN_RATE <= rate <= MAX_RATE and block == channels * bits // 8
    return Wav(at, size_bytes, dtype, bits // 8, channels, rate) if dtype and fits else None
